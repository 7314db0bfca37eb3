"""Products with weights: values and both gradients against float64, whichever factor is the wider."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.models.matmul import matmul


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 8), (8, 24)])
def test_values_and_gradients(inputs, outputs):
    rng = np.random.default_rng(0)
    x, kernel, grad = (rng.normal(size=size) for size in ((2, 5, inputs), (inputs, outputs), (2, 5, outputs)))
    found, pull = jax.vjp(matmul, jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    grad_x, grad_kernel = pull(jnp.asarray(grad, jnp.float32))
    np.testing.assert_allclose(found, x @ kernel, atol=1e-5)
    np.testing.assert_allclose(grad_x, grad @ kernel.T, atol=1e-5)
    np.testing.assert_allclose(grad_kernel, np.einsum("bti,bto->io", x, grad), atol=1e-5)


def test_gradients_keep_the_dtype():
    x, kernel = jnp.ones((2, 3, 8), jnp.bfloat16), jnp.ones((8, 4), jnp.bfloat16)
    out, pull = jax.vjp(matmul, x, kernel)
    assert [a.dtype for a in (out, *pull(out))] == [jnp.bfloat16] * 3
