"""Stage `text_encoder`: weights alone, written without training."""

import jax
import numpy as np
import pytest

from mae_pp_jax.commands.evaluate_suite import evaluate_suite
from mae_pp_jax.commands.train import train
from mae_pp_jax.core import partition
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.stages import registry
from tests.conftest import ROOT
from tests.stages.conftest import params_of

SIZES = "vocabulary=40,positions=12,width=16,depth=2,heads=2,mlp=24"
RECIPE = str(ROOT / f"configs/text_encoder/random.py:size=minilm_l6,{SIZES}")
TINY = {"stage": "text_encoder", "text": dict(vocabulary=40, positions=12, width=16, depth=2, heads=2, mlp=24)}


@pytest.mark.parametrize("projection", [0, 6])
def test_parameters_are_an_encoder_and_its_projection(projection):
    stage = registry.create(registry.resolve({**TINY, "projection": projection}))
    shapes = flatten(jax.eval_shape(stage.init, jax.random.key(0)))
    beside = {path: leaf.shape for path, leaf in shapes.items() if not path.startswith("text/")}
    assert beside == ({"projection/kernel": (16, 6)} if projection else {})
    assert partition.axes_of(stage.parameter_axes(), shapes).keys() == shapes.keys()


def test_training_writes_the_initial_weights_and_another_run_takes_them(tmp_path):
    result = train(RECIPE, tmp_path / "run")
    assert (result["step"], result["metrics"], result["stage"]) == (0, {}, "text_encoder")
    assert train(RECIPE, tmp_path / "run") == result
    params = params_of(tmp_path / "run")
    assert result["parameters"] == sum(leaf.size for leaf in params.values())
    taken = train(
        str(ROOT / "configs/text_encoder/random.py"),
        tmp_path / "taken",
        {"init_from.run": str(tmp_path / "run"), "seed": "1"},
    )
    assert taken["params_sha256"] == result["params_sha256"] and taken["lineage"]
    for path, leaf in params_of(tmp_path / "taken").items():
        np.testing.assert_array_equal(leaf, params[path], err_msg=path)
    assert params["text/token_embed"].shape == (40, 16)
    with pytest.raises(UserError, match="is a run of stage 'text_encoder' and holds no image encoder"):
        evaluate_suite([str(tmp_path / "run")], "knn", "digits_hashtags", {}, None)


def test_keys_of_a_training_are_refused_and_so_is_evaluation():
    with pytest.raises(UserError, match="config.train_for: 5 steps has no effect: stage 'text_encoder' is not trained"):
        registry.resolve({**TINY, "train_for": "5 steps"})
    stage = registry.create(registry.resolve(TINY))
    with pytest.raises(UserError, match="'text_encoder' is not trained, it has no step to plan"):
        stage.batch_spec()
    with pytest.raises(UserError, match="a text encoder alone"):
        stage.evaluators()
