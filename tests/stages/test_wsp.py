"""Stage `wsp`, and the handoff of the encoder to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.commands.train import train
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.stages import registry
from tests.conftest import TINY
from tests.stages.conftest import params_of, recipe, stage_of

UNTOUCHED = {**TINY, "train_for": "1 steps", "optim.lr": "0", "optim.weight_decay": "0"}


def test_handoff_moves_the_encoder_exactly_and_prints_every_leaf(tmp_path, runs):
    mae, _ = runs("mae")
    train(recipe("wsp"), tmp_path / "wsp", {**UNTOUCHED, "init_from.run": str(mae)})
    source, target = params_of(mae), params_of(tmp_path / "wsp")
    for path in (p for p in source if p.startswith("encoder/")):
        np.testing.assert_array_equal(source[path], target[path], err_msg=path)
    assert not np.any(target["head/kernel"])
    log = (tmp_path / "wsp" / "log.txt").read_text()
    assert all(path in log for path in {*source, *target})


def test_positions_are_trained(runs):
    mae, wsp = (params_of(runs(name)[0])["encoder/pos_embed"] for name in ("mae", "wsp"))
    assert np.any(mae != wsp)


def test_a_run_of_another_kind_of_stage_is_refused(tmp_path, runs):
    overrides = {**TINY, "init_from.run": str(runs("linear")[0])}
    with pytest.raises(UserError, match="is a run of stage 'linear'; this stage starts from mae or wsp or classify"):
        train(recipe("wsp"), tmp_path / "x", overrides)
    assert not (tmp_path / "x").exists()


def test_the_target_is_shared_by_the_hashtags_and_images_without_one_have_no_part():
    stage = stage_of("wsp")
    params, batch = stage.init(jax.random.key(0)), next(stage.train_batches(0))
    params["head"]["kernel"] = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    tags = np.full(batch["hashtags"].shape, -1, np.int32)
    tags[0, :2], tags[5, 0] = [3, 1], 2
    batch = {**batch, "hashtags": tags}
    (total, weight), values = stage.loss(params, batch, jax.random.split(jax.random.key(2), 32))
    logp = np.asarray(jax.nn.log_softmax(stage.model.apply(params, stage.pixels(batch))))
    assert weight == 2
    np.testing.assert_allclose(total, -(logp[0, 3] + logp[0, 1]) / 2 - logp[5, 2], rtol=1e-5)
    np.testing.assert_allclose(values["untagged"], [30, 32])
    hits = float(logp[0].argmax() in (3, 1)) + float(logp[5].argmax() == 2)
    np.testing.assert_allclose(values["tag_precision"], [hits, 2])


def test_evaluators_measure_tag_map_only_if_wanted(runs):
    _, result = runs("wsp")
    assert {"test/loss", "test/tag_precision", "test/tag_map", "test/tags_measured"} <= result["metrics"].keys()
    assert len(stage_of("wsp", map_positives="0").evaluators()) == 1


def test_the_head_starts_at_zero():
    head = stage_of("wsp").init(jax.random.key(0))["head"]
    assert not jnp.any(head["kernel"]) and not jnp.any(head["bias"])


def test_lineage_names_the_run_it_starts_from(runs):
    (parent,) = runs("wsp")[1]["lineage"]
    assert parent["stage"] == "mae" and parent["run"] == str(runs("mae")[0])


def test_an_evaluation_set_says_what_is_measured_on_it():
    stage = stage_of("wsp", evals__plain__split="test", evals__plain__evaluators="averages")
    assert [(type(e).__name__, e.name) for e in stage.evaluators()] == [
        ("Averages", "test"),
        ("Averages", "plain"),
        ("TagMap", "test"),
    ]
    with pytest.raises(
        UserError, match="config.evals.test.evaluators: stage 'wsp' has no kNN; it has averages, tag_map"
    ):
        stage_of("wsp", evals__test__evaluators="averages,kNN")


def test_hashtags_of_an_evaluation_are_those_of_the_checkpoint():
    """A vocabulary in another order, or with fewer hashtags, since the training."""
    now = stage_of("wsp")
    names, identity = now.names["hashtags"], now.identity()
    assert identity["hashtags"] == names and identity["label"] == now.names["label"]
    order = [*reversed(names[1:]), "gone"]
    meta = {"identity": {**identity, "hashtags": order}, "dataset": {}}
    then = registry.create(now.config.recalled(meta))
    then.recall(meta)
    assert then.vocabulary == len(order)
    for before, after in zip(now.eval_source("test").column("hashtags"), then.eval_source("test").column("hashtags")):
        assert {names[i] for i in before} - {names[0]} == {order[i] for i in after}


def test_the_recipe_for_own_data_learns_at_a_small_batch(tmp_path):
    """The loss leaves that of equal odds for all hashtags; at 4e-4 · 64 / 8192 it stays there."""
    recipe = "configs/wsp/folder.py:data=digits_hashtags,size=Ti/4,image_size=8,batch=64"
    small = {name: TINY[f"model.{name}"] for name in ("width", "depth", "heads")}
    changes = {f"model.{name}": value for name, value in small.items()}
    changes |= {"train_for": "100 steps", "log_every": "50%", "eval_every": "100%", "checkpoint.every": "100%"}
    changes |= {"tensorboard": "false", "map_positives": "0"}
    result = train(recipe, tmp_path / "wsp", changes)
    assert result["metrics"]["test/loss"] < result["chance"]["test/loss"] - 0.3


@pytest.mark.parametrize("name", ["mae", "wsp", "classify", "linear", "low_shot"])
def test_chance_stands_beside_the_metrics(runs, name):
    folder, result = runs(name)
    assert result["chance"] and result["chance"].keys() <= result["metrics"].keys()
    assert "chance, without a look at the images: train/loss" in (folder / "log.txt").read_text()
    at_zero = {"mae": 1.0, "wsp": np.log(148)}.get(name, np.log(10))
    assert result["chance"]["train/loss"] == pytest.approx(at_zero)
