"""What becomes of an encoder when the next stage has another class token, pooling, positions or grid of patches."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from mae_pp_jax.commands.train import train
from mae_pp_jax.core import checkpoint, handoff
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.models import positions
from mae_pp_jax.stages import registry
from tests.conftest import ROOT, TINY

SQUARE, WIDE, TALL = (16, 16), (8, 12), (12, 8)  # grids of 4×4, 2×3 and 3×2 patches: as many in the last two


@functools.cache
def built(name, cls, pool, size):
    """A tiny stage that needs no data, and the shapes of its parameters."""
    model = dict(size="Ti/4", width=8, depth=1, heads=2, cls_token=cls)
    if name != "mae":  # which pools nothing
        model["pool"] = pool
    mapping = dict(stage=name, model=model, declared=dict(classes=3, records=10, hashtags=3), global_batch=10)
    if name == "mae":
        mapping["mae"] = dict(decoder_width=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.5)
    config = registry.resolve(mapping | dict(train_for="1 steps"), saved=True)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=size))
    made = registry.create(config)
    return made, flatten(jax.eval_shape(made.init, jax.random.key(0)))


def stage(name, cls=True, pool="cls", kind="learned", size=SQUARE):
    """The same, and its config with the kind of positions, which changes no shape."""
    made, shapes = built(name, cls, pool, size)
    model = dataclasses.replace(made.config.model, positions=kind)
    return made, shapes, dataclasses.replace(made.config, model=model)


def plan(source, target, **more):
    """The plan of a handoff and its report; `more` stands in the JSON part of the source's checkpoint."""
    (_, theirs, old), (made, ours, made.config) = source, target
    found = handoff.plan(made.handoff, theirs, ours, "there", dict(config=config_lib.to_dict(old), **more))
    return found, handoff.report(found, theirs, ours, "there")


ENCODERS = [
    dict(cls=cls, pool=pool, kind=kind, size=size)
    for cls, pool, kind, size in itertools.product((True, False), ("cls", "mean"), ("learned", "sincos"), (WIDE, TALL))
    if cls or pool == "mean"
]


@pytest.mark.parametrize(
    "source_name, target_name", [("mae", "classify"), ("mae", "linear"), ("classify", "classify"), ("mae", "mae")]
)
def test_every_pair_works_or_is_refused_in_one_line(source_name, target_name):
    for old, new in itertools.product(ENCODERS, ENCODERS):
        source, target = stage(source_name, **old), stage(target_name, **new)
        if target_name == "linear" and new["cls"] and not old["cls"]:
            with pytest.raises(UserError, match=r"config\.model\.cls_token: .* set config\.model\.cls_token=false"):
                plan(source, target)
            continue
        found, report = plan(source, target)
        same = (old["cls"], old["size"]) == (new["cls"], new["size"])
        table = np.zeros(source[1]["encoder/pos_embed"].shape, np.float32)
        assert ("encoder/pos_embed" in found.moved) == same
        if not same:
            assert found.resize["encoder/pos_embed"](table).shape == target[1]["encoder/pos_embed"].shape
        assert ("encoder/cls_token" in found.fresh) == (new["cls"] and not old["cls"])
        assert ("encoder/cls_token" in found.dropped) == (old["cls"] and not new["cls"])
        learned = (old["kind"], new["kind"]) == ("learned", "sincos")
        assert ("learned there, fixed here as they are" in report) == learned
        assert {*found.moved, *found.resized, *found.fresh} == set(target[1])


def coordinates(size, cls):
    """A table whose channels are the row and column of each patch, in units of a patch, centred; class token: 9."""
    rows, columns = (side // 4 for side in size)
    at = np.stack(np.meshgrid(np.arange(rows) - (rows - 1) / 2, np.arange(columns) - (columns - 1) / 2, indexing="ij"))
    table = np.concatenate([np.full((int(cls), 2), 9.0), at.reshape(2, -1).T])
    return np.repeat(table, 4, axis=1).astype(np.float32)  # width 8: rows in the first half, columns in the second


@pytest.mark.parametrize("old, new", [(SQUARE, WIDE), (WIDE, SQUARE), (WIDE, TALL)])
@pytest.mark.parametrize("had, has", [(True, True), (True, False), (False, True), (False, False)])
def test_rows_and_columns_keep_their_directions_and_the_class_row_its_place(old, new, had, has):
    source = stage("mae", cls=had, kind="sincos", pool="mean", size=old)
    target = stage("classify", cls=has, pool="mean", size=new)
    found, report = plan(source, target)
    table = found.resize["encoder/pos_embed"](coordinates(old, had))
    if has:
        np.testing.assert_array_equal(table[0], 9.0 if had else 0.0)
        table = table[1:]
    rows, columns = (side // 4 for side in new)
    table = table.reshape(rows, columns, 8)
    assert np.all(np.ptp(table[..., :4], axis=1) < 1e-6) and np.all(np.ptp(table[..., 4:], axis=0) < 1e-6)
    assert np.all(np.diff(table[:, 0, 0]) > 0) and np.all(np.diff(table[0, :, 4]) > 0)
    text = "grid {}×{} → {}×{}".format(*(side // 4 for side in (*old, *new)))
    assert text in report and ("for the class token" in report) == (had != has)


@pytest.mark.parametrize("method", positions.METHODS)
def test_imported_weights_are_resized_as_the_code_that_they_come_from_does(method):
    table = np.random.default_rng(0).normal(size=(17, 8)).astype(np.float32)
    record = dict(file="w.pt", format="x", resize=method)
    found, report = plan(stage("encoder"), stage("classify", size=(24, 24)), lineage=[record])
    expected = positions.resize(table, (6, 6), True, method=method)
    np.testing.assert_array_equal(found.resize["encoder/pos_embed"](table), expected)
    assert (f"grid 4×4 → 6×6, as {method} does" in report) == (method != "mae")
    # A run that was trained from imported weights is ours, and resized as MAE does.
    found, _ = plan(stage("encoder"), stage("classify", size=(24, 24)), lineage=[record, dict(stage="encoder")])
    expected = positions.resize(table, (6, 6), True)
    np.testing.assert_array_equal(found.resize["encoder/pos_embed"](table), expected)


def test_the_decoder_of_a_masked_autoencoder_goes_along():
    source, target = stage("mae", kind="sincos", size=WIDE), stage("mae", kind="sincos", size=TALL)
    found, _ = plan(source, target)
    table = found.resize["decoder/pos_embed"](positions.sincos_2d(8, 2, 3, True))
    assert table.shape == (7, 8) and not np.any(table[0])
    assert not found.dropped and not found.fresh


def test_a_run_without_the_class_token_of_its_source(mae_run, tmp_path):
    overrides = {**TINY, "init_from.run": str(mae_run), "train_for": "1 steps", "optim.lr": "0"}
    overrides |= {"optim.weight_decay": "0", "model.cls_token": "false", "model.pool": "mean"}
    train(str(ROOT / "configs/classify/digits.py"), tmp_path / "run", overrides)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "resized  encoder/pos_embed 5×16 → encoder/pos_embed 4×16 (without the row for the class token)" in log
    assert "dropped  encoder/cls_token 1×16" in log
    step = checkpoint.find(tmp_path / "run")
    assert checkpoint.weights(tmp_path / "run", step)["encoder/pos_embed"].shape == (4, 16)
