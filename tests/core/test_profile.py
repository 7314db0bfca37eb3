"""The profiler watches a run; it neither ends one nor stands in the way of the next."""

import signal

import jax
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.core import program as program_lib
from tests.conftest import ROOT, TINY_MAE, arguments

MAE = str(ROOT / "configs/mae/digits.py")


def run(folder) -> int:
    overrides = {**TINY_MAE, "profile": "true"}
    return main(["train", f"--config={MAE}", f"--workdir={folder}", *arguments(overrides)])


def traces(folder) -> list:
    return list((folder / "profile").rglob("*.xplane.pb"))


def test_a_run_that_is_preempted_while_profiled_closes_the_profiler(tmp_path, monkeypatch):
    compile_step = program_lib.Program.compile_to_run

    def compiled(self):
        update = compile_step(self)

        def step(state, batch):
            if int(state.step) == 4:  # within the profiled steps
                signal.raise_signal(signal.SIGTERM)
            return update(state, batch)

        return step

    with monkeypatch.context() as patched:
        patched.setattr(program_lib.Program, "compile_to_run", compiled)
        assert run(tmp_path / "one") == 75
    assert run(tmp_path / "two") == 0
    assert traces(tmp_path / "one") and traces(tmp_path / "two")


@pytest.mark.parametrize("broken", ["start_trace", "stop_trace"])
def test_a_profiler_that_fails_is_a_warning(tmp_path, monkeypatch, capsys, broken):
    stop = jax.profiler.stop_trace

    def fail(*_):
        if broken == "stop_trace":
            stop()
        raise RuntimeError("the profiler broke")

    monkeypatch.setattr(jax.profiler, broken, fail)
    assert run(tmp_path / "run") == 0
    assert "no trace in" in capsys.readouterr().err
