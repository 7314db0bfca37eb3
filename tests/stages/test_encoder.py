"""Stage `encoder`: weights alone."""

import jax
import pytest

from mae_pp_jax.core import loop, partition
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.stages import registry

TINY = {"stage": "encoder", "model": {"size": "Ti/4", "width": 16, "depth": 2, "heads": 2}, "data": {"image_size": 8}}


@pytest.mark.parametrize("projection", [0, 6])
def test_parameters_are_an_encoder_and_its_projection(projection):
    stage = registry.create(registry.resolve({**TINY, "projection": projection}))
    shapes = flatten(jax.eval_shape(stage.init, jax.random.key(0)))
    beside = {path: leaf.shape for path, leaf in shapes.items() if not path.startswith("encoder/")}
    assert beside == ({"projection/kernel": (16, 6), "logit_scale": ()} if projection else {})
    assert partition.axes_of(stage.parameter_axes(), shapes).keys() == shapes.keys()


def test_it_is_neither_trained_nor_evaluated(tmp_path):
    stage = registry.create(registry.resolve({**TINY, "train_for": "1 steps"}))
    with pytest.raises(UserError, match="config.stage: 'encoder' is weights alone and is not trained"):
        loop.run(stage, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="an encoder alone, with nothing to evaluate"):
        stage.evaluators()
