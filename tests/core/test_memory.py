"""A training that CPUs cannot hold is refused before its memory is asked for."""

import math

import jax
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.core import memory
from tests.core import test_program


def test_this_machine_says_what_is_free():
    assert memory.free() is None or 2**20 < memory.free() < 2**50


def test_a_state_or_a_step_that_does_not_fit_is_refused(monkeypatch):
    program = test_program.program(mesh=(2, 1, 1))
    state = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.shapes))
    monkeypatch.setattr(memory, "free", lambda: 2 * state)  # two devices of one memory hold a copy each
    memory.check_state(program.shapes, program.mesh)
    monkeypatch.setattr(memory, "free", lambda: 2 * state - 1)
    with pytest.raises(memory.RunStopped, match="out of memory .*a smaller config.model, or use more machines with"):
        memory.check_state(program.shapes, program.mesh)
    monkeypatch.setattr(memory, "free", lambda: None)  # a system that does not say
    compiled = program.compile_to_run()
    monkeypatch.setattr(memory, "free", lambda: 2 * compiled.memory_analysis().temp_size_in_bytes - 1)
    with pytest.raises(memory.RunStopped, match="out of memory .*lower config.global_batch"):
        memory.check_program(compiled, program.mesh)


@pytest.mark.parametrize("verb", ["train", "bench"])
def test_a_model_that_is_too_large_is_one_line_and_leaves_nothing(tmp_path, capsys, verb):
    """32 layers of width 65,536: 6.6 TB of parameters."""
    size = ["--config.model.width=65536", "--config.model.depth=32", "--config.model.heads=64"]
    where = [f"--workdir={tmp_path / 'run'}"] if verb == "train" else []
    assert main([verb, "--config=configs/mae/digits.py", *size, *where]) == 3
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped: ")]
    assert "parameters and optimizer state take" in line and not (tmp_path / "run").exists()
