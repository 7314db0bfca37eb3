"""Stage `classify`, and what stages that need labels say without them."""

import jax
import numpy as np
import pytest

from mae_pp_jax.commands.train import train
from mae_pp_jax.core import optim
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.data.source import Subset
from mae_pp_jax.models import blocks
from tests.conftest import TINY
from tests.stages.conftest import params_of, recipe, stage_of


def test_lineage_names_all_ancestors(runs):
    _, result = runs("classify")
    assert [parent["stage"] for parent in result["lineage"]] == ["mae", "wsp"]
    assert result["lineage"][1]["run"] == str(runs("wsp")[0])


def test_positions_are_resized_to_another_resolution(tmp_path, runs):
    mae, _ = runs("mae")
    overrides = {**TINY, "init_from.run": str(mae), "data.image_size": "16", "train_for": "1 steps"}
    train(recipe("classify"), tmp_path / "large", {**overrides, "optim.lr": "0", "optim.weight_decay": "0"})
    small, large = params_of(mae), params_of(tmp_path / "large")
    assert large["encoder/pos_embed"].shape == (17, 16)
    np.testing.assert_array_equal(large["encoder/pos_embed"][0], small["encoder/pos_embed"][0])
    assert "resized  encoder/pos_embed 5×16 → encoder/pos_embed 17×16" in (tmp_path / "large" / "log.txt").read_text()


def test_the_loss_is_that_of_smoothed_labels():
    stage = stage_of("classify", label_smoothing="0.2", model__drop_path="0")
    params, batch = stage.init(jax.random.key(0)), next(stage.train_batches(0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    (total, weight), values = stage.loss(params, batch, jax.random.split(jax.random.key(2), 32))
    logp = np.asarray(jax.nn.log_softmax(stage.model.apply(params, stage.pixels(batch))))
    own = logp[np.arange(32), batch["label"]]
    assert weight == 32
    np.testing.assert_allclose(total, -np.sum(0.8 * own + 0.2 * logp.mean(1)), rtol=1e-5)
    np.testing.assert_allclose(values["accuracy"], [np.sum(logp.argmax(1) == batch["label"]), 32])


REGULARISED = dict(mixup="0.8", cutmix="1.0", erasing="0.5", head_dropout="0.5", label_smoothing="0.1")


@pytest.mark.parametrize("cutmix, seed", [("0", 0), ("1.0", 0), ("1.0", 1)])
def test_a_batch_is_mixed_with_itself_in_reverse(cutmix, seed):
    stage, keys = stage_of("classify", mixup="0.8", cutmix=cutmix, mix_switch="1.0" if cutmix > "0" else "0.5"), None
    keys, batch = jax.random.split(jax.random.key(seed), 32), next(stage.train_batches(0))
    mixed = stage.augment(batch, keys)
    own, flipped = mixed["image"], np.asarray(stage.pixels(batch, keys))  # flipped before they are mixed
    np.testing.assert_array_equal(mixed["partner"], batch["label"][::-1])
    share = float(mixed["share"][0])
    assert 0 < share < 1 and (mixed["share"] == share).all()
    if cutmix == "0":
        expected = share * flipped + (1 - share) * flipped[::-1]
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)
    else:
        kept = (own == flipped).all((0, 3))
        np.testing.assert_array_equal(np.where(kept[..., None], flipped, flipped[::-1]), own)
        assert kept.mean() >= share - 1e-6


def test_the_loss_is_that_of_mixed_labels_and_accuracy_that_of_the_larger_share():
    stage = stage_of("classify", mixup="0.8", label_smoothing="0.2", model__drop_path="0")
    params, batch = stage.init(jax.random.key(0)), next(stage.train_batches(0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    keys = jax.random.split(jax.random.key(3), 32)
    mixed = stage.augment(batch, keys)
    (total, weight), values = stage.loss(params, mixed, keys)
    logp = np.asarray(jax.nn.log_softmax(stage.model.apply(params, mixed["image"])))
    share, rows = float(mixed["share"][0]), np.arange(32)
    label, partner = batch["label"], batch["label"][::-1]
    own = share * logp[rows, label] + (1 - share) * logp[rows, partner]
    np.testing.assert_allclose(total / weight, -np.mean(0.8 * own + 0.2 * logp.mean(1)), rtol=1e-5)
    larger = label if share >= 0.5 else partner
    np.testing.assert_allclose(values["accuracy"], [np.sum(logp.argmax(1) == larger), 32])


def test_evaluation_is_without_regularisation():
    plain, stage = stage_of("classify"), stage_of("classify", **REGULARISED, data__randaugment="rand-m9-mstd0.5-inc1")
    params = stage.init(jax.random.key(0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    one, other = (next(s.eval_batches("test")) for s in (plain, stage))
    np.testing.assert_array_equal(one["image"], other["image"])
    found = [s.model.apply(params, s.pixels(one)) for s in (plain, stage)]
    np.testing.assert_array_equal(*found)


def test_dropout_before_the_head_drops_channels_of_each_image_and_keeps_the_mean():
    features, keys = np.ones((400, 50), np.float32), jax.random.split(jax.random.key(0), 400)
    out = np.asarray(blocks.dropout(features, keys, 0.2))
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.8)}
    assert out.mean() == pytest.approx(1.0, abs=0.01) and not np.array_equal(out[0], out[1])
    stage, batch = stage_of("classify", head_dropout="0.9", model__drop_path="0"), None
    params, batch = stage.init(jax.random.key(0)), next(stage.train_batches(0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    losses = [float(stage.loss(params, batch, jax.random.split(jax.random.key(seed), 32))[0][0]) for seed in (2, 3)]
    assert losses[0] != losses[1]


def test_randaugment_changes_training_images_alone_and_leaves_the_stream_of_other_runs():
    plain, stage = (stage_of("classify", data__randaugment=text) for text in ("", "rand-m9-mstd0.5-inc1"))
    before, after = (next(s.train_batches(0)) for s in (plain, stage))
    np.testing.assert_array_equal(before["label"], after["label"])
    assert 10 < (before["image"] != after["image"]).any((1, 2, 3)).sum() < 32
    again = next(stage.train_batches(0))
    np.testing.assert_array_equal(after["image"], again["image"])


@pytest.mark.parametrize(
    "key, value, why",
    [
        ("mix_prob", "0.5", "neither mixup nor cutmix"),
        ("mix_switch", "0.3", "not both"),
        ("erasing", "1.5", "1.0"),
        ("data.randaugment", "rand-m9-x", "'x' is no part"),
    ],
)
def test_what_has_no_effect_or_does_not_parse_is_refused(key, value, why):
    with pytest.raises(UserError, match=why) as error:
        stage_of("classify", **{key.replace(".", "__"): value})
    assert key in str(error.value)


def test_blocks_learn_the_slower_the_further_they_are_from_the_head():
    stage = stage_of("classify", layer_decay="0.5")
    paths = list(flatten(jax.eval_shape(stage.init, jax.random.key(0))))
    speed = optim.assign(stage.lr_rules(), paths, "")
    np.testing.assert_allclose(speed["encoder/blocks/mlp/fc1/kernel"], [0.25, 0.5])
    assert speed["encoder/patch_embed/kernel"] == speed["encoder/pos_embed"] == 0.125
    assert speed["head/kernel"] == 1.0
    fixed = stage_of("classify", model__positions="sincos")
    assert optim.assign(fixed.lr_rules(), paths, "")["encoder/pos_embed"] == optim.FROZEN


def test_class_token_positions_biases_and_scales_do_not_decay():
    stage = stage_of("classify")
    paths = list(flatten(jax.eval_shape(stage.init, jax.random.key(0))))
    decayed = {path for path, factor in optim.assign(stage.decay_rules(), paths, "").items() if factor}
    assert decayed == {path for path in paths if path.endswith("/kernel")}


class _Unlabelled(Subset):
    """Digits without labels, as `data build` writes images that have none in a dataset that has classes."""

    def __getitem__(self, index):
        return super().__getitem__(index) | {"label": -1}


@pytest.mark.parametrize("name, needs_labels", [("mae", False), ("wsp", False), ("classify", True), ("linear", True)])
def test_images_without_a_label_stop_only_stages_that_need_it(name, needs_labels):
    stage = stage_of(name)
    stage.train_source = _Unlabelled(stage.train_source, np.arange(40))
    batches = stage.train_batches(0)
    if needs_labels:
        with pytest.raises(UserError, match="has no label"):
            next(batches)
    else:
        assert next(batches)["image"].shape[0] == stage.config.global_batch
