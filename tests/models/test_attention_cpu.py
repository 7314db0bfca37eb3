"""Attention on CPUs against jax.nn.dot_product_attention, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.models.attention_cpu import attend


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_values_and_gradients(dtype, tolerance, quick):
    rng = np.random.default_rng(3)
    qkv, weights = (jnp.asarray(rng.normal(size=(*n, 2, 17, 24)), dtype) for n in ((3,), ()))
    qkv = qkv.at[0].multiply(4)  # away from the flat softmax of small scores

    def by_jax(qkv, heads):
        query, key, value = qkv.reshape(3, 2, 17, heads, 8)
        return jax.nn.dot_product_attention(query, key, value).reshape(2, 17, 24)

    def value_and_gradients(attention):
        def objective(qkv):
            out = attention(qkv, 3)
            return jnp.sum((out * weights).astype(jnp.float32)), out

        (_, out), grad = quick(jax.value_and_grad(objective, has_aux=True))(qkv)
        return dict(zip(("out", "query", "key", "value"), (out, *grad), strict=True))

    expected = value_and_gradients(by_jax)
    found = value_and_gradients(attend)
    for name, array in found.items():
        assert array.dtype == jnp.dtype(dtype)
        scale = np.abs(np.asarray(expected[name], np.float32)).max()
        difference = np.abs(np.asarray(array, np.float32) - np.asarray(expected[name], np.float32)).max()
        assert difference <= tolerance * scale, name


def test_large_scores_do_not_overflow():
    query = jnp.full((1, 2, 4), 1e3)
    value = jnp.arange(8.0).reshape(1, 2, 4)
    found = jax.jit(lambda *qkv: attend(jnp.stack(qkv), 1))(query, query, value)
    np.testing.assert_allclose(found, jnp.broadcast_to(value.mean(1, keepdims=True), value.shape))


def test_the_backward_pass_keeps_nothing_as_large_as_the_weights():
    pull = jax.eval_shape(lambda qkv: jax.vjp(lambda x: attend(x, 2), qkv)[1], jnp.zeros((3, 1, 64, 16)))
    assert 0 < sum(leaf.size for leaf in jax.tree.leaves(pull)) < 2 * 64 * 64
