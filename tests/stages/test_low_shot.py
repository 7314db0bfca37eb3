"""Stage `low_shot`: draws of labelled images, and heads that do not know of one another."""

import jax
import numpy as np
import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import loop, partition
from mae_pp_jax.core import program as program_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.stages import registry
from tests.stages.conftest import params_of, stage_of, stage_of_run


def trained(splits, **overrides):
    """Heads [splits, width, classes] and statistics after a few updates of eight images per head."""
    random = {"data.flip": "true", "data.crop": "shift"}
    stage = stage_of("low_shot", splits=str(splits), global_batch=str(8 * splits), **random, **overrides)
    mesh = partition.make_mesh(config_lib.resolve(partition.MeshConfig, {}), jax.devices()[:1])
    prog = program_lib.make(stage, mesh)
    state, *_ = loop.initial_state(prog)
    update, batches = prog.compile(), stage.train_batches(0)
    for _ in range(5):
        state = update(state, partition.to_global(next(batches), mesh))
    return {p: np.asarray(v) for p, v in flatten(state.params).items() if not p.startswith("encoder/")}, stage


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_more_splits_change_nothing_of_the_first(name):
    """Neither their images, their order and flips, their learning rate, nor what clipping or LARS makes of it."""
    keys = {"optim.name": name, "optim.lr": "0.02", "optim.lr_batch": "8", "optim.clip": "0.5", "seed": "3"}
    few, stage = trained(2, **keys)
    many, larger = trained(5, **keys)
    for a, b in zip(stage.subsets, larger.subsets, strict=False):
        assert a.fingerprint == b.fingerprint
    assert np.ptp(few["heads/kernel"]) > 1e-3
    for path, value in few.items():
        np.testing.assert_allclose(many[path][:2], value, rtol=1e-5, atol=1e-6, err_msg=path)


def test_each_split_shows_only_its_few_images(runs):
    """Two epochs: the same twenty images twice, two of each class."""
    stage = stage_of_run(runs("low_shot")[0])
    batches = stage.train_batches(0)
    joined = [next(batches) for _ in range(5)]
    group, label = (np.concatenate([batch[name] for batch in joined]) for name in ("group", "label"))
    pixels = [image.tobytes() for batch in joined for image in batch["image"]]
    drawn = [{image for image, owner in zip(pixels, group, strict=True) if owner == split} for split in range(5)]
    for split in range(5):
        assert np.bincount(label[group == split]).tolist() == [4] * 10
        assert len(drawn[split]) == 20
    assert len(set.union(*drawn)) > 60  # independent draws of 1,437


def test_results_are_mean_and_deviation_over_splits(runs):
    _, result = runs("low_shot")
    assert result["metrics"]["test/splits"] == 5
    assert {"test/accuracy", "test/accuracy_std"} <= result["metrics"].keys()
    assert result["dataset"]["shots"] == 2 and result["dataset"]["splits"] == 5


def test_the_frozen_encoder_stays_that_of_the_source(runs):
    source, target = params_of(runs("wsp")[0]), params_of(runs("low_shot")[0])
    for path in (p for p in source if p.startswith("encoder/")):
        np.testing.assert_array_equal(source[path], target[path], err_msg=path)
    assert np.any(target["heads/kernel"])


def test_a_batch_is_dealt_out_evenly():
    with pytest.raises(UserError, match="config.global_batch: 32 does not divide over 5 splits"):
        stage_of("low_shot", global_batch="32")
    assert stage_of("low_shot", global_batch="40").model_batch == 8


def test_slices_of_a_batch_give_the_same_heads():
    """A slice need not hold as many images of one split as of another."""
    whole, _ = trained(2, **{"optim.lr": "0.02"})
    sliced, _ = trained(2, **{"optim.lr": "0.02", "microbatches": "8"})
    np.testing.assert_allclose(sliced["heads/kernel"], whole["heads/kernel"], rtol=1e-4, atol=1e-6)


def test_small_classes_give_all_where_it_is_said_and_in_runs_from_before(caplog):
    with pytest.raises(UserError, match="config.shots: 500 images per class are wanted, and 10 of 10 classes"):
        stage_of("low_shot", shots="500").drawn
    stage = stage_of("low_shot", shots="500", small_classes="all")
    assert [len(drawn) for drawn in stage.drawn] == [1437] * 5 and "give all they have" in caplog.text
    mapping = config_lib.to_dict(stage_of("low_shot", shots="2").config)
    assert mapping.pop("small_classes") == "refuse"
    assert registry.resolve(mapping, saved=True).small_classes == "all"
    assert registry.resolve({**mapping, "small_classes": "refuse"}, saved=True).small_classes == "refuse"
