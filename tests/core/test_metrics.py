"""Metrics as sums and weights, the rows of a run, and what its progress says."""

import json
import logging
import re

import jax.numpy as jnp
import pytest

from mae_pp_jax.core import metrics


def test_means_weigh_what_was_added():
    total = metrics.zeros(["loss", "accuracy"])
    for *sums, weight in [(6.0, 2.0, 3.0), (10.0, 0.0, 1.0), (0.0, 0.0, 0.0)]:  # the last one is padding
        pairs = ((jnp.asarray(value), jnp.asarray(weight)) for value in sums)
        total = metrics.add(total, dict(zip(total, pairs, strict=True)))
    assert metrics.means(total) == {"loss": 4.0, "accuracy": 0.5}


def test_rows_hold_step_examples_and_values(tmp_path):
    rows = metrics.Rows(tmp_path / "metrics.jsonl", resume_step=0)
    rows.write(2, 64, {"train/loss": 0.5})
    rows.write(4, 128, {"train/loss": 0.25, "data/unreadable": 3})
    rows.write(4, 128, {"test/loss": 0.75})
    assert rows.last() == {"train/loss": 0.25, "data/unreadable": 3, "test/loss": 0.75}
    rows.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 2, "examples_seen": 64, "train/loss": 0.5} and len(lines) == 3


@pytest.mark.parametrize("half", ["", '{"step": 4, "trai', '{"step": 9, "train/loss": 1}'])
def test_a_resumed_run_drops_rows_after_its_checkpoint_and_half_a_line(tmp_path, half):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "train/loss": 1.0}) + "\n" for step in (2, 4, 6)]
    path.write_text("".join(whole) + half)
    rows = metrics.Rows(path, resume_step=4)
    rows.write(6, 0, {"train/loss": 2.0})
    rows.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 6]
    assert path.read_text().startswith("".join(whole[:2]))


def test_a_run_from_the_start_begins_a_new_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 0, "train/loss": 1.0}) + "\n")
    metrics.Rows(path, resume_step=0).close()
    assert path.read_text() == ""


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return now


def test_progress_says_the_word_of_the_stage_its_speed_and_the_time_left(clock, caplog):
    caplog.set_level(logging.INFO)
    progress = metrics.Progress("wsp", 0, 100, 32, "clip")
    clock[0] += 40
    assert progress.report(10, {"train/loss": 0.12345}) == 8.0
    assert caplog.messages[-1] == "wsp step 10/100 loss 0.1235 8 clips/s, 6:00 left"
    clock[0] += 10
    assert progress.report(20, {}) == 32.0  # since the row before
    assert re.search(r"32 clips/s, 3:20 left", caplog.messages[-1])


def test_evaluation_and_saving_count_neither_as_speed_nor_as_time_left(clock, caplog):
    caplog.set_level(logging.INFO)
    progress = metrics.Progress("mae", 50, 100, 10, "image")
    clock[0] += 20
    with progress.paused():
        clock[0] += 1000
    assert progress.report(60, {}) == 5.0
    assert "5 images/s, 1:20 left" in caplog.messages[-1]
