"""`bench`: what its figures are made of, and what it refuses."""

import json
import time

import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands.bench import bench
from mae_pp_jax.data import pipeline
from tests.conftest import ROOT, TINY, TINY_MAE, arguments, command

MAE = str(ROOT / "configs/mae/digits.py")


def test_prints_and_writes_step_input_and_both(tmp_path):
    file = tmp_path / "bench.json"
    done = command(
        "bench", f"--config={MAE}", "--steps=4", "--input", f"--json={file}", *arguments(TINY_MAE), devices=2
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["stage"] == "mae" and found["device"] == "cpu" and found["devices"] == 2
    step = found["step"]
    assert step["seconds"]["p10"] <= step["seconds"]["median"] <= step["seconds"]["p90"]
    assert step["windows"] * step["window_steps"] >= 4
    assert step["examples_per_second"] == pytest.approx(32 / step["seconds"]["median"])
    assert step["tflops_per_second"] == pytest.approx(step["model_flops"] / step["seconds"]["median"] / 1e12)
    assert step["compile_seconds"] > step["seconds"]["p90"]
    assert step["utilization"] is None and step["peak_bytes"] is None  # a CPU tells neither
    assert found["input"]["examples_per_second"] > 0 and 0 <= found["together"]["stall_share"] < 1
    for figure in (step["examples_per_second"], found["input"]["examples_per_second"]):
        assert f"{figure:,.4g} images/s" in done.stdout
    assert "waits" in done.stdout


def test_a_recipe_that_declares_its_counts_needs_no_data(tmp_path):
    changes = TINY | {"data.name": str(tmp_path / "absent"), "declared.records": "100", "declared.hashtags": "20"}
    found = bench(str(ROOT / "configs/wsp/digits.py"), changes, steps=2)
    assert found["step"]["examples_per_second"] > 0 and "input" not in found


def test_a_slow_input_is_seen_as_waiting(monkeypatch):
    """The real input, with a pause before each batch that is many times longer than a step."""
    real, pause = pipeline.train_batches, 0.5

    def slow(*args, **kwargs):
        for batch in real(*args, **kwargs):
            time.sleep(pause)
            yield batch

    monkeypatch.setattr(pipeline, "train_batches", slow)
    found = bench(MAE, TINY_MAE, steps=3, with_input=True)
    assert found["input"]["examples_per_second"] <= 32 / pause
    assert found["together"]["examples_per_second"] <= 32 / pause
    assert found["together"]["stall_share"] > 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [("--steps=0", "--steps: 0 steps cannot be timed"), ("--config.global_batch=0", "config.global_batch")],
)
def test_refusals_are_one_line(change, said, capsys):
    assert main(["bench", f"--config={MAE}", change]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
