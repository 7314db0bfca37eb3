"""A transformer over tokens of any kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import functional
from mae_pp_jax.models.transformer import Transformer


def make(remat="none"):
    return functional.Model(
        lambda rngs: Transformer(16, 2, 2, 32, jnp.dtype("float32"), remat=remat, drop_path=0.5, rngs=rngs)
    )


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_padding_changes_nothing_and_has_no_gradient(remat, random_params, quick):
    """Two texts of three tokens among seven: as if there were no other tokens."""
    model, at = make(remat), np.array([[0, 1, 2], [1, 4, 6]])
    params = random_params(model)
    padded = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 16)), jnp.float32)
    mask = np.zeros((2, 7), bool)
    np.put_along_axis(mask, at, True, axis=1)

    def loss(x, key_mask):
        tokens = model.apply(params, x, key_mask=key_mask, method="transform")
        kept = tokens if key_mask is None else tokens * key_mask[:, :, None]
        return jnp.sum(jnp.square(kept)), tokens

    def answers(x, key_mask):
        (_, tokens), gradient = quick(jax.value_and_grad(loss, has_aux=True))(x, key_mask)
        return np.asarray(tokens), np.asarray(gradient)

    (tokens, gradient), alone = answers(padded, mask), answers(padded[mask].reshape(2, 3, 16), None)
    np.testing.assert_allclose(tokens[mask].reshape(2, 3, 16), alone[0], atol=1e-5)
    np.testing.assert_allclose(gradient[mask].reshape(2, 3, 16), alone[1], atol=1e-5)
    assert not np.any(gradient[~mask])


def test_drop_path_needs_keys(random_params):
    model = make()
    with pytest.raises(ValueError, match="needs a key for each example"):
        model.apply(random_params(model), jnp.zeros((2, 3, 16)), None, True, method="transform")
