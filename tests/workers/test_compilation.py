"""A compilation's process: its death is told, and it does not outlive the one that asked."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import RunStopped
from mae_pp_jax.planning import slices
from mae_pp_jax.stages import registry
from mae_pp_jax.workers import compilation
from tests.conftest import ROOT, TINY, environment

ASKS = """
import time
from tests.workers.test_compilation import asked
with asked() as work:
    print(work.pid, flush=True)
    time.sleep(60)
"""


def asked(ask: str = "measure") -> compilation.Compilation:
    config = registry.resolve(config_lib.load_file(str(ROOT / "configs/wsp/digits.py")), TINY)
    return compilation.Compilation(config_lib.to_dict(config), slices.parse("cpu:2"), ask)


def test_a_compiler_that_is_killed_is_told_in_one_line():
    with asked() as work:
        os.kill(work.pid, signal.SIGKILL)
        while not work.done:
            time.sleep(0.05)
        with pytest.raises(RunStopped, match=r"the compiler for cpu:2 was killed \(out of memory") as error:
            work.report()
    assert "\n" not in str(error.value)


def test_what_a_compiler_printed_before_an_unforeseen_error_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with asked("nothing that it can answer") as work:
        while not work.done:
            time.sleep(0.05)
        with pytest.raises(RunStopped, match="the compiler for cpu:2 ended with exit code 1: KeyError: ") as error:
            work.report()
    (kept,) = tmp_path.glob("*.txt")
    assert str(kept) in str(error.value) and "\n" not in str(error.value)
    assert "Traceback (most recent call last):" in kept.read_text()


@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks into /proc")
def test_a_compiler_leaves_with_the_process_that_asked():
    with subprocess.Popen([sys.executable, "-c", ASKS], cwd=ROOT, env=environment(), stdout=subprocess.PIPE) as parent:
        command = pathlib.Path("/proc") / parent.stdout.readline().decode().strip() / "cmdline"
        while b"plan_worker" not in command.read_bytes():
            time.sleep(0.05)
        parent.kill()
    deadline = time.monotonic() + 60
    while command.is_file() and command.read_bytes():  # empty once it is dead and nobody has asked how
        assert time.monotonic() < deadline, "the compiler lives on"
        time.sleep(0.1)
