"""A training process starts under glibc's setting; a variable that the user has set stays."""

import os
import platform
import subprocess
import sys

import pytest

from mae_pp_jax import __main__
from mae_pp_jax.core import allocator

SHOW = """
import os
from mae_pp_jax.core import allocator
allocator.restart_tuned()
print(os.environ.get(allocator.VARIABLE))
"""


def shown(environment: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_restart():
    environment = {name: value for name, value in os.environ.items() if name != allocator.VARIABLE}
    assert shown(environment) == allocator.SETTING
    assert shown(environment | {allocator.VARIABLE: "glibc.malloc.check=0"}) == "glibc.malloc.check=0"


@pytest.mark.parametrize(("verb", "restarts"), [("train", 1), ("pipeline", 1), ("bench", 1), ("convert", 0)])
def test_verbs_that_train_restart(monkeypatch, verb, restarts):
    calls = []
    monkeypatch.setattr(allocator, "restart_tuned", lambda: calls.append(verb))
    monkeypatch.setattr(sys, "argv", ["mae_pp_jax", verb, "--no-such-option"])
    assert __main__.command_line() == 2
    assert len(calls) == restarts
