"""Attention on CPUs against jax.nn.dot_product_attention, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.models.attention_cpu import attend


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_values_and_gradients(dtype, tolerance, quick):
    rng = np.random.default_rng(3)
    query, key, value, weights = (jnp.asarray(rng.normal(size=(2, 17, 3, 8)), dtype) for _ in range(4))
    query = 4 * query  # away from the flat softmax of small scores

    def value_and_gradients(attention):
        def objective(query, key, value):
            out = attention(query, key, value)
            return jnp.sum((out * weights).astype(jnp.float32)), out

        (_, out), grads = quick(jax.value_and_grad(objective, (0, 1, 2), has_aux=True))(query, key, value)
        return dict(zip(("out", "query", "key", "value"), (out, *grads), strict=True))

    expected = value_and_gradients(jax.nn.dot_product_attention)
    found = value_and_gradients(attend)
    for name, array in found.items():
        assert array.dtype == jnp.dtype(dtype)
        scale = np.abs(np.asarray(expected[name], np.float32)).max()
        difference = np.abs(np.asarray(array, np.float32) - np.asarray(expected[name], np.float32)).max()
        assert difference <= tolerance * scale, name


def test_large_scores_do_not_overflow():
    query = jnp.full((1, 2, 1, 4), 1e3)
    value = jnp.arange(8.0).reshape(1, 2, 1, 4)
    np.testing.assert_allclose(attend(query, query, value), jnp.broadcast_to(value.mean(1, keepdims=True), value.shape))


def test_the_backward_pass_keeps_nothing_as_large_as_the_weights():
    query = jnp.zeros((1, 64, 2, 8))
    _, pull = jax.vjp(attend, query, query, query)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) < 2 * 64 * 64
