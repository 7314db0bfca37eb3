"""FLOPs of Pallas kernels, counted from their source."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from mae_pp_jax.planning import kernels


def products(x_ref, w_ref, out_ref):
    """Two matrix products, one of them in a loop of three."""
    w = w_ref[...]
    y = jax.lax.fori_loop(0, 3, lambda _, x: jnp.dot(x, w), x_ref[...])
    out_ref[...] = jnp.dot(y, w)


def call(x, w):
    rows = pl.BlockSpec((8, 64), lambda i: (i, 0))
    whole = pl.BlockSpec((64, 64), lambda i: (0, 0))
    return pl.pallas_call(
        products,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(x.shape[0] // 8,),
        in_specs=[rows, whole],
        out_specs=rows,
    )(x, w)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit], ids=["plain", "checkpoint", "jit"])
def test_every_cell_and_every_turn_of_a_loop_counts(wrap):
    shapes = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((64, 64), jnp.float32)
    assert kernels.flops(jax.make_jaxpr(wrap(call))(*shapes)) == {
        ((32, 64), (64, 64), (32, 64)): 4 * (3 + 1) * 2 * 8 * 64 * 64
    }


def test_no_kernel_no_flops():
    assert kernels.flops(jax.make_jaxpr(lambda x: x @ x)(jnp.ones((4, 4)))) == {}
