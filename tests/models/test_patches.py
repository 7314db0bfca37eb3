"""Images to patches and back, and their embedding."""

import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core import functional
from mae_pp_jax.models import patches

IMAGES = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)


def test_patchify_order_and_inverse():
    found = patches.patchify(IMAGES, 2)
    assert found.shape == (2, 6, 12)
    np.testing.assert_array_equal(found[1, 4], IMAGES[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(patches.unpatchify(found, 2, (2, 3)), IMAGES)


def test_each_patch_is_embedded_by_one_linear_map(random_params, run):
    model = functional.Model(lambda rngs: patches.PatchEmbed(2, 5, jnp.dtype("float32"), rngs=rngs))
    params = random_params(model)
    images = np.asarray(IMAGES, np.float32) / 144
    found = run(model, params, images)
    for row in range(2):
        for column in range(3):
            pixels = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(2, -1)
            expected = pixels @ np.float64(params["kernel"]) + np.float64(params["bias"])
            np.testing.assert_allclose(found[:, 3 * row + column], expected, atol=1e-6)
