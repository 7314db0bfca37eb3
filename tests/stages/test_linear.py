"""Stage `linear`."""

import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core.functional import unflatten
from tests.stages.conftest import params_of, stage_of_run


def test_the_frozen_encoder_stays_that_of_the_source(runs):
    source, target = params_of(runs("wsp")[0]), params_of(runs("linear")[0])
    for path in (p for p in source if p.startswith("encoder/")):
        np.testing.assert_array_equal(source[path], target[path], err_msg=path)
    assert np.any(target["head/kernel"])


def test_statistics_normalise_the_features_of_the_training_images(runs):
    """What is measured before the first step is the mean and variance of the features, and stays."""
    folder, _ = runs("linear")
    stage, params = stage_of_run(folder), unflatten(params_of(folder))
    batches, rows = stage.train_batches(0), []
    for _ in range(-(-stage.records // stage.config.global_batch)):
        rows.append(np.asarray(stage.features(params, {n: jnp.asarray(v) for n, v in next(batches).items()})))
    rows = np.concatenate(rows).astype(np.float64)
    np.testing.assert_allclose(params["feature_norm"]["mean"][0], rows.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(params["feature_norm"]["variance"][0], rows.var(0), rtol=1e-4)


def test_the_head_learns(runs):
    _, result = runs("linear")
    assert result["metrics"]["test/loss"] < np.log(10)
    assert {"test/accuracy", "test/accuracy_top5"} <= result["metrics"].keys()
