"""The training loop: the order of what it does, when it does it, and how it ends."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import checkpoint, loop, preemption
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import Preempted, RunStopped, UserError
from tests.text_stage import HeldOut, TextConfig, TextStage

OPTIM = dict(lr=0.01, lr_batch=0, warmup="0 steps")
KEYS = dict(stage="text", global_batch=8, train_for="20 steps", log_every="3 steps", eval_every="6 steps")
KEYS |= dict(checkpoint=dict(every="6 steps", keep=9), tensorboard=False, optim=OPTIM)


def stage(cls=TextStage, **changes):
    return cls(config_lib.resolve(TextConfig, config_lib.merge(KEYS, changes)))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop") / "run"
    return folder, loop.run(stage(), folder)


def test_rows_evaluations_and_checkpoints_come_at_their_lengths_and_at_the_end(finished):
    folder, result = finished
    found = rows(folder)
    assert [row["step"] for row in found if "train/bits" in row] == [3, 6, 9, 12, 15, 18, 20]
    assert [row["step"] for row in found if "held_out/bits" in row] == [6, 12, 18, 20]
    assert checkpoint.steps(folder / "checkpoints") == [6, 12, 18, 20]
    assert all(row["examples_seen"] == 8 * row["step"] for row in found)
    assert result["metrics"]["held_out/bits"] == found[-1]["held_out/bits"]
    assert result["step"] == 20 and result["examples_seen"] == 160
    assert result["examples_per_second"] > 0 and result["train_flops_per_example"] == stage().train_flops_per_example()


def test_a_step_is_logged_then_evaluated_then_saved(tmp_path):
    seen = []

    @dataclasses.dataclass
    class Witness:
        name: str = "held_out/order"

        def run(self, params, mesh):
            newest = rows(tmp_path / "run")[-1]
            seen.append((newest["step"], "train/bits" in newest, checkpoint.steps(tmp_path / "run/checkpoints")))
            return {}

    class Watched(TextStage):
        def evaluators(self):
            return [Witness()]

    loop.run(stage(Watched, train_for="12 steps", checkpoint=dict(every="12 steps")), tmp_path / "run")
    assert seen == [(6, True, []), (12, True, [])]


def test_a_finished_run_is_returned_as_it_is(finished):
    class Untrainable(TextStage):
        def train_batches(self, start_step):
            raise AssertionError("a finished run reads nothing")

    folder, result = finished
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert loop.run(stage(Untrainable), folder) == json.loads((folder / "result.json").read_text())
    assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert result["metrics"] == json.loads(before[folder / "result.json"])["metrics"]


def test_another_config_in_the_same_folder_is_refused(finished):
    with pytest.raises(UserError, match=r"holds a run with another config \(seed: 0 → 1\)"):
        loop.run(stage(seed=1), finished[0])


def test_a_preempted_run_saves_between_its_checkpoints_and_goes_on_to_the_same_end(finished, tmp_path, monkeypatch):
    asked = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(preemption.Preemption, "reached", lambda _: next(asked) == 8)
        with pytest.raises(Preempted, match="preempted at step 8; state saved, run the same command again"):
            loop.run(stage(), tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [6, 8]
    assert not (tmp_path / "run/result.json").exists()
    result = loop.run(stage(), tmp_path / "run")
    assert result["params_sha256"] == finished[1]["params_sha256"]
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()


def test_a_run_preempted_at_its_last_step_is_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(preemption.Preemption, "reached", lambda _: True)
    assert loop.run(stage(train_for="1 steps"), tmp_path / "run")["step"] == 1


class Poisoned(TextStage):
    """The batch of step 4 holds what no loss is finite of."""

    def train_batches(self, start_step):
        for step, batch in enumerate(super().train_batches(start_step), start_step):
            yield {"bytes": np.where(step == 4, 255, batch["bytes"])}

    def bits(self, params, texts, scale=1.0):
        return super().bits(params, texts, scale) + jnp.where(texts[:, 0] == 255, jnp.nan, 0.0)


@pytest.mark.parametrize("every", [1, 3, 20])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step_and_its_batch(tmp_path, every):
    """Also where it is looked at only steps later; neither rows nor checkpoints hold anything of it."""
    lengths = dict(log_every=f"{every} steps", eval_every=f"{every} steps", checkpoint=dict(every=f"{every} steps"))
    with pytest.raises(RunStopped, match=r"step 4: loss or gradient is not finite, in batch 4 \(texts of step 4\)"):
        loop.run(stage(Poisoned, **lengths), tmp_path / "run")
    good = list(range(every, 5, every))
    assert checkpoint.steps(tmp_path / "run/checkpoints") == good
    assert [row["step"] for row in rows(tmp_path / "run") if "train/bits" in row] == good
    assert all(np.isfinite(value) for row in rows(tmp_path / "run") for value in row.values())
    assert not (tmp_path / "run/result.json").exists()


def test_a_stage_stops_a_run_by_its_counts(tmp_path):
    class Picky(TextStage):
        def counts(self, batch):
            return {"data/texts": np.int32(len(batch["bytes"]))}

        def check_counts(self, counts, examples):
            assert counts == {"data/texts": examples}
            if examples > 50:
                raise RunStopped(f"too many: {examples}")

    with pytest.raises(RunStopped, match="too many: 72"):
        loop.run(stage(Picky), tmp_path / "run")
    assert [row["data/texts"] for row in rows(tmp_path / "run") if "data/texts" in row] == [24, 48, 72]


def test_drawings_become_files_of_the_run_and_no_metrics(tmp_path):
    class Drawing:
        def file(self, name, step):
            return f"drawings/{name.replace('/', '_')}_{step}.txt", b"drawn"

        def show(self, writer, name, step):
            raise AssertionError("TensorBoard is off")

    class Drawn(HeldOut):
        def run(self, params, mesh):
            return {**super().run(params, mesh), "held_out/drawing": Drawing()}

    class Drawer(TextStage):
        def evaluators(self):
            return [Drawn(self)]

    result = loop.run(stage(Drawer, train_for="2 steps"), tmp_path / "run")
    assert (tmp_path / "run/drawings/held_out_drawing_2.txt").read_bytes() == b"drawn"
    assert "held_out/drawing" not in result["metrics"] and "held_out/bits" in result["metrics"]


def test_nothing_is_written_for_a_run_that_is_refused(tmp_path):
    with pytest.raises(UserError, match="config.train_for"):
        loop.run(stage(train_for="some steps"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class TooLarge(TextStage):
    """Its weights fit into no memory."""

    def init(self, key):
        return {**super().init(key), "huge": jnp.zeros(2**46)}

    def parameter_axes(self):
        return ((r"huge", (None,)), *super().parameter_axes())


def test_a_model_that_does_not_fit_stops_the_run_and_leaves_nothing(tmp_path):
    with pytest.raises(RunStopped, match="out of memory.*a smaller config.model.size"):
        loop.run(stage(TooLarge), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


class Guessed(TextStage):
    def chance(self):
        return {"train/bits": 8.0}


def test_the_level_of_chance_is_told_and_kept(tmp_path, finished):
    result = loop.run(stage(Guessed, train_for="1 steps"), tmp_path / "run")
    assert result["chance"] == {"train/bits": 8.0} and finished[1]["chance"] == {}
    assert "chance, without a look at the texts: train/bits 8\n" in (tmp_path / "run" / "log.txt").read_text()
