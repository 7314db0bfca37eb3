"""The training loop: the order of what it does, when it does it, and how it ends."""

import dataclasses
import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import checkpoint, errors, loop, preemption, run_folder
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


def moved(record, **changes):
    """A stage on the same texts in another place, or on others."""

    class Elsewhere(TextStage):
        def __init__(self, config):
            super().__init__(config)
            self.dataset = record | changes

    return Elsewhere


@pytest.fixture
def source_and_stopped(tmp_path, monkeypatch):
    """(folder of a finished run, folder of one that started from it and was preempted at step 8)."""
    before, folder = tmp_path / "before", tmp_path / "run"
    loop.run(stage(train_for="4 steps", seed=7), before)
    asked = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(preemption.Preemption, "reached", lambda _: next(asked) == 8)
        with pytest.raises(Preempted):
            loop.run(stage(init_from=dict(run=str(before))), folder)
    return before, folder


def test_a_run_goes_on_where_its_source_and_its_folder_lie_now(source_and_stopped, tmp_path, monkeypatch):
    before, folder = source_and_stopped
    monkeypatch.chdir(tmp_path)
    before.rename(tmp_path / "elsewhere")
    folder.rename(tmp_path / "moved")
    (tmp_path / "link").symlink_to("elsewhere")
    result = loop.run(stage(init_from=dict(run="link/")), "moved")
    assert result["step"] == 20
    assert json.loads((tmp_path / "moved/config.json").read_text())["init_from"]["run"] == "link/"
    assert loop.run(stage(init_from=dict(run=str(tmp_path / "elsewhere"))), tmp_path / "moved") == result  # finished


@pytest.mark.parametrize("other", ["", "other", "gone"])
def test_another_source_is_refused_and_nothing_is_written(source_and_stopped, tmp_path, other):
    _, folder = source_and_stopped
    loop.run(stage(train_for="4 steps", seed=8), tmp_path / "other")
    before = (folder / "config.json").read_bytes()
    with pytest.raises(
        UserError, match="^config.init_from.*: .*(is not what .* started from|gone holds no checkpoint)"
    ):
        loop.run(stage(init_from=dict(run=other and str(tmp_path / other))), folder)
    assert (folder / "config.json").read_bytes() == before


def test_data_under_another_name_is_the_same_and_other_data_are_not(tmp_path, monkeypatch):
    record = dict(
        name="/old/texts", records=1, fingerprint="a", evals=dict(test=dict(name="/old/test", fingerprint="b"))
    )
    with monkeypatch.context() as patch:
        patch.setattr(preemption.Preemption, "reached", lambda _: True)
        with pytest.raises(Preempted):
            loop.run(stage(moved(record)), tmp_path / "run")
    other = record | dict(evals=dict(test=dict(name="/old/test", fingerprint="c")))
    with pytest.raises(UserError, match="evals/test/fingerprint was b, is c"):
        loop.run(stage(moved(other)), tmp_path / "run")
    same = record | dict(name="/new/texts/", evals=dict(test=dict(name="../test", fingerprint="b")))
    assert loop.run(stage(moved(same)), tmp_path / "run")["dataset"]["name"] == "/new/texts/"


def test_ctrl_c_saves_when_a_step_is_done_and_at_once_when_it_comes_again(finished, tmp_path):
    class Interrupted(TextStage):
        times = 1

        def train_batches(self, start_step):
            for step, batch in enumerate(super().train_batches(start_step), start_step):
                for _ in range(self.times if step == 8 else 0):
                    signal.raise_signal(signal.SIGINT)
                yield batch

    class Twice(Interrupted):
        times = 2

    with pytest.raises(errors.Interrupted, match="interrupted at step 8; state saved, run the same command again"):
        loop.run(stage(Interrupted), tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [6, 8]
    with pytest.raises(KeyboardInterrupt):
        loop.run(stage(Twice), tmp_path / "twice")
    assert checkpoint.steps(tmp_path / "twice/checkpoints") == [6]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for folder in ("run", "twice"):
        assert loop.run(stage(), tmp_path / folder)["params_sha256"] == finished[1]["params_sha256"]


def test_ctrl_c_before_the_first_step_raises_at_once(tmp_path):
    class Interrupted(TextStage):
        def train_batches(self, start_step):
            signal.raise_signal(signal.SIGINT)
            return super().train_batches(start_step)

    with pytest.raises(KeyboardInterrupt):
        loop.run(stage(Interrupted), tmp_path / "run")


def test_an_unforeseen_error_leaves_its_trace_in_the_log(tmp_path):
    class Broken(TextStage):
        def train_batches(self, start_step):
            raise LookupError("no such text")

    with pytest.raises(LookupError) as error:
        loop.run(stage(Broken), tmp_path / "run")
    assert error.value.trace_file == tmp_path / "run/log.txt"
    assert "Traceback (most recent call last):" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.parametrize("path", ["", "/proc/nowhere"])
def test_the_revision_of_the_code_on_a_machine_without_git(monkeypatch, path):
    monkeypatch.setenv("PATH", path)
    assert run_folder.code_revision().startswith("0.")


class Guessed(TextStage):
    def chance(self):
        return {"train/bits": 8.0}


def test_the_level_of_chance_is_told_and_kept(tmp_path, finished):
    result = loop.run(stage(Guessed, train_for="1 steps"), tmp_path / "run")
    assert result["chance"] == {"train/bits": 8.0} and finished[1]["chance"] == {}
    assert "chance, without a look at the texts: train/bits 8\n" in (tmp_path / "run" / "log.txt").read_text()
