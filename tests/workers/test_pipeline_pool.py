"""Stages side by side in worker processes: how the end of a worker is told."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time

import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import RunStopped, Unforeseen, UserError
from mae_pp_jax.stages import registry
from mae_pp_jax.workers import pipeline_pool
from tests.conftest import ROOT, TINY_MAE


def config(**overrides: str):
    """A tiny MAE stage."""
    return registry.resolve(config_lib.load_file(str(ROOT / "configs/mae/digits.py")), {**TINY_MAE, **overrides})


def test_an_unforeseen_error_in_a_worker_leaves_its_trace_in_the_log_of_the_stage(tmp_path):
    bad = config()
    bad = dataclasses.replace(bad, checkpoint=dataclasses.replace(bad.checkpoint, keep="many"))  # unchecked like this
    with pytest.raises(Unforeseen) as stop:
        pipeline_pool.train_all({"first": bad}, tmp_path, 1)
    log = tmp_path / "first" / "log.txt"
    said = str(stop.value)
    assert said.startswith("first: TypeError: ") and str(log) in said and "\n" not in said
    assert "memory" not in said
    assert "Traceback (most recent call last):" in log.read_text() and 'File "' in log.read_text()


def test_an_unforeseen_error_before_the_stage_has_a_folder_leaves_its_trace_too(tmp_path):
    bad = dataclasses.replace(config(), seed="one")
    with pytest.raises(Unforeseen, match="first: ") as stop:
        pipeline_pool.train_all({"first": bad}, tmp_path, 1)
    assert str(tmp_path / "first" / "log.txt") in str(stop.value)
    assert "Traceback (most recent call last):" in (tmp_path / "first" / "log.txt").read_text()


def test_a_stage_without_a_step_is_refused_before_any_is_trained(tmp_path):
    stages = {"first": config(), "second": config(train_for="0 epochs")}
    with pytest.raises(UserError, match="second: config.train_for: '0 epochs' comes to 0 steps of 32 images"):
        pipeline_pool.train_all(stages, tmp_path, 2)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "kind, said", [(signal.SIGKILL, "was killed (out of memory?)"), (signal.SIGABRT, "died of SIGABRT")]
)
def test_a_worker_that_dies_is_told_with_the_cause(tmp_path, kind, said):
    def kill():
        end = time.monotonic() + 120
        while not (tmp_path / "first" / "config.json").exists() and time.monotonic() < end:
            time.sleep(0.05)
        for process in multiprocessing.active_children():
            os.kill(process.pid, kind)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RunStopped) as stop:
        pipeline_pool.train_all({"first": config(train_for="100000 steps")}, tmp_path, 1)
    killer.join()
    assert str(stop.value).startswith(f"the process that trained first {said}")
