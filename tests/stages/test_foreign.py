"""A stage from outside of the package, on text alone, through the training loop: `tests/text_stage.py`."""

import json
import pathlib

import jax
import numpy as np
import pytest

from mae_pp_jax.core import checkpoint, loop, partition
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import program as program_lib
from mae_pp_jax.core.functional import flatten
from tests import text_stage
from tests.test_imports import imported
from tests.text_stage import TextConfig, TextStage

KEYS = dict(stage="text", global_batch=16, train_for="40 steps", log_every="5 steps", eval_every="20 steps")
KEYS |= dict(checkpoint=dict(every="8 steps"), tensorboard=False, optim=dict(lr=0.03, lr_batch=0, ema=0.5))


class Killed(Exception):
    pass


class Interrupted(TextStage):
    """Ends in the middle of a row, an evaluation and a checkpoint."""

    def train_batches(self, start_step):
        for step, batch in enumerate(super().train_batches(start_step), start_step):
            if step == 23:
                raise Killed
            yield batch


def stage(cls=TextStage, **changes):
    return cls(config_lib.resolve(TextConfig, config_lib.merge(KEYS, changes)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "run"
    return folder, loop.run(stage(), folder)


def test_it_knows_nothing_of_the_package_but_the_core():
    ours = {name for name in imported(pathlib.Path(text_stage.__file__)) if name.startswith("mae_pp_jax")}
    assert ours and all(name.startswith("mae_pp_jax.core") for name in ours)


def test_it_trains_with_its_own_metrics_and_word(finished):
    folder, result = finished
    assert result["stage"] == "text" and result["examples_seen"] == 640
    assert result["metrics"]["held_out/bits"] < 4  # of 8 where nothing is known
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "held_out/bits" in row] == [20, 40]
    assert rows[0]["train/bits"] > rows[-2]["train/bits"]
    assert "texts/s" in (folder / "log.txt").read_text()


def test_interrupted_and_resumed_it_ends_in_the_same_bits(finished, tmp_path):
    with pytest.raises(Killed):
        loop.run(stage(Interrupted), tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [8, 16]
    result = loop.run(stage(), tmp_path / "run")
    assert result["params_sha256"] == finished[1]["params_sha256"]
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()


def test_it_trains_alike_on_a_mesh_of_three_axes(finished, tmp_path):
    spread = stage(mesh=dict(data=2, fsdp=2, tensor=2))
    mesh = partition.make_mesh(spread.config.mesh)
    for path, leaf in flatten(program_lib.make(spread, mesh).shapes.params).items():
        assert leaf.sharding.is_fully_replicated is False, path
    result = loop.run(spread, tmp_path / "run")
    for name in ("held_out/bits", "train/bits", "train/gradient_norm"):
        np.testing.assert_allclose(result["metrics"][name], finished[1]["metrics"][name], rtol=1e-4)


def test_another_run_starts_from_its_weights(finished, tmp_path):
    folder, result = finished
    still = dict(train_for="1 steps", optim=dict(lr=0.0, ema=0.0), init_from=dict(run=str(folder)))
    second = loop.run(stage(**still), tmp_path / "run")
    assert second["params_sha256"] == result["params_sha256"]  # the averages, which the first one evaluated
    assert second["metrics"]["held_out/bits"] == result["metrics"]["held_out/bits"]
    assert jax.tree.leaves(second["lineage"])
