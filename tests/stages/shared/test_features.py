"""Statistics of frozen features, against NumPy in float64."""

import jax
import numpy as np
import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import partition
from mae_pp_jax.stages.shared import features

WIDTH, BATCH, BATCHES = 6, 32, 5


def measured(rows, groups, shape, number):
    """Statistics of rows [batches · batch, width] with their groups, measured on a mesh."""
    sizes = dict(zip(partition.MESH_AXES, shape, strict=True))
    mesh = partition.make_mesh(config_lib.resolve(partition.MeshConfig, sizes), jax.devices()[: int(np.prod(shape))])
    batches = ({"rows": rows[i : i + BATCH], "group": groups[i : i + BATCH]} for i in range(0, len(rows), BATCH))
    found = features.measure(lambda _, batch: batch["rows"], {}, batches, BATCHES, mesh, number)
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("ratio", [0.0, 1000.0, -1e5])
def test_mean_and_variance_hold_where_the_mean_is_far_above_the_deviation(ratio, number, shape):
    rng = np.random.default_rng(0)
    rows = rng.normal(ratio, 1.0, (BATCH * BATCHES, WIDTH)) * np.logspace(-3, 2, WIDTH)
    rows = rows.astype(np.float32)
    groups = rng.integers(number, size=len(rows)).astype(np.int32)
    groups[:BATCH] = 0  # the first batch holds none of the others
    found = measured(rows, groups, shape, number)
    for group in range(number):
        own = rows[groups == group].astype(np.float64)
        off = (found["mean"][group] - own.mean(0)) / own.std(0)
        np.testing.assert_allclose(off, 0.0, atol=1e-5 + 1e-7 * abs(ratio))  # the mean itself is float32
        np.testing.assert_allclose(found["variance"][group], own.var(0), rtol=1e-5)


def test_normalised_features_have_mean_0_and_variance_1_in_each_group():
    rng = np.random.default_rng(1)
    rows, groups = rng.normal(5.0, 2.0, (BATCH * BATCHES, WIDTH)).astype(np.float32), np.arange(BATCH * BATCHES) % 2
    found = measured(rows, groups.astype(np.int32), (1, 1, 1), 2)
    normal = np.asarray(features.normalize(found, rows))
    for group in range(2):
        own = normal[groups == group, group]
        np.testing.assert_allclose(own.mean(0), 0.0, atol=1e-5)
        np.testing.assert_allclose(own.std(0), 1.0, rtol=1e-5)
