"""FLOPs of Pallas kernels, counted from their source."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from mae_pp_jax.core import hardware
from mae_pp_jax.planning import cost, hlo, kernels
from tests.planning import make_sample


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


def test_source_and_compiled_program_agree_on_the_shapes():
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    weights = jax.ShapeDtypeStruct((make_sample.LAYERS, make_sample.WIDTH, make_sample.WIDTH), jnp.bfloat16)
    x = jax.ShapeDtypeStruct((make_sample.BATCH, make_sample.WIDTH), jnp.bfloat16)
    with jax.set_mesh(mesh):
        counted = kernels.flops(jax.make_jaxpr(make_sample.program)(weights, x))
    module = hlo.parse((pathlib.Path(__file__).parent / "sample_v5e_2x2.hlo").read_text())
    found = cost.measure(module, hardware.CHIPS["TPU v5 lite"], counted)
    flops = {o.name: o.flops for o in found.operations if o.opcode == cost.KERNEL}
    assert flops == {"said.1": make_sample.KERNEL_FLOPS, "silent.1": make_sample.KERNEL_FLOPS}


def test_no_kernel_no_flops():
    assert kernels.flops(jax.make_jaxpr(lambda x: x @ x)(jnp.ones((4, 4)))) == {}
