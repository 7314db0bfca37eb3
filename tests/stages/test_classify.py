"""Stage `classify`, and what stages that need labels say without them."""

import jax
import numpy as np
import pytest

from mae_pp_jax.commands.train import train
from mae_pp_jax.core import optim
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.data.source import Subset
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
