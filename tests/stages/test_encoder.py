"""Stage `encoder`: weights alone, written without training."""

import jax
import numpy as np
import pytest

from mae_pp_jax.commands.train import train
from mae_pp_jax.core import checkpoint, partition, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.stages import registry
from tests.conftest import ROOT
from tests.stages.conftest import params_of

TINY = {"stage": "encoder", "model": {"size": "Ti/4", "width": 16, "depth": 2, "heads": 2}, "data": {"image_size": 8}}
RECIPE = str(ROOT / "configs/encoder/random.py:size=Ti/4,image_size=8,width=16,depth=2,heads=2")


@pytest.mark.parametrize("projection", [0, 6])
def test_parameters_are_an_encoder_and_its_projection(projection):
    stage = registry.create(registry.resolve({**TINY, "projection": projection}))
    shapes = flatten(jax.eval_shape(stage.init, jax.random.key(0)))
    beside = {path: leaf.shape for path, leaf in shapes.items() if not path.startswith("encoder/")}
    assert beside == ({"projection/kernel": (16, 6), "logit_scale": ()} if projection else {})
    assert partition.axes_of(stage.parameter_axes(), shapes).keys() == shapes.keys()


def test_training_writes_the_initial_weights_as_a_finished_run(tmp_path):
    result = train(RECIPE, tmp_path / "run")
    assert (result["step"], result["metrics"], result["dataset"], result["lineage"]) == (0, {}, {}, [])
    assert checkpoint.find(storage.path(tmp_path / "run")) == 0
    params = params_of(tmp_path / "run")
    assert result["parameters"] == sum(leaf.size for leaf in params.values())
    assert params["encoder/blocks/attn/qkv/kernel"].std() > 0
    assert train(RECIPE, tmp_path / "run") == result
    (tmp_path / "run" / "result.json").unlink()  # as if killed before the end
    assert train(RECIPE, tmp_path / "run")["params_sha256"] == result["params_sha256"]
    other = train(RECIPE, tmp_path / "other", {"seed": "1"})
    assert other["params_sha256"] != result["params_sha256"]


def test_weights_of_another_run_are_taken_without_its_decoder(mae_run, tmp_path):
    given = {"init_from.run": str(mae_run), "model.positions": "sincos"}
    result = train(RECIPE, tmp_path / "run", given)
    assert [parent["stage"] for parent in result["lineage"]] == ["mae"]
    params, source = params_of(tmp_path / "run"), params_of(mae_run)
    assert params.keys() == {path for path in source if path.startswith("encoder/")}
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, source[path], err_msg=path)


def test_keys_of_a_training_are_refused_and_so_is_evaluation():
    with pytest.raises(UserError, match="config.train_for: 5 steps has no effect: stage 'encoder' is not trained"):
        registry.resolve({**TINY, "train_for": "5 steps"})
    with pytest.raises(UserError, match="'encoder' is not trained, it has no step to plan"):
        registry.create(registry.resolve(TINY)).loss(None, None, None)
    with pytest.raises(UserError, match="--suite=image"):
        registry.create(registry.resolve(TINY)).evaluators()
