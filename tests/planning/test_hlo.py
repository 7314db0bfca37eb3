"""Reading of types, matrix products and loop bounds from programs of the CPU compiler of this machine."""

import jax
import jax.numpy as jnp
import pytest

from mae_pp_jax.planning import hlo


def compiled(function, *shapes) -> hlo.Module:
    text = jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile().as_text()
    return hlo.parse(text)


def trips(module: hlo.Module) -> list[int | None]:
    return [
        module.trips(computation, instruction)
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "while"
    ]


@pytest.mark.parametrize(
    "text, size",
    [
        ("f32[8,128]{1,0:T(8,128)S(1)}", 4096),
        ("(bf16[4,2]{1,0}, s32[]{:T(128)}, /*index=5*/pred[3]{0})", 16 + 4 + 3),
        ("f8e4m3fn[16]{0}", 16),
        ("s4[16]{0}", 8),
        ("token[]", 0),
        ("()", 0),
    ],
)
def test_bytes_of_types(text, size):
    assert hlo.size(text) == size


@pytest.mark.parametrize("start, stop", [(0, 7), (3, 11)])
def test_trip_counts_of_counted_loops(start, stop):
    module = compiled(lambda x: jax.lax.fori_loop(start, stop, lambda i, x: jnp.sin(x @ x) + i, x), (16, 16))
    assert trips(module) == [stop - start]


def test_a_loop_without_a_count_has_none():
    module = compiled(lambda x: jax.lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: x * 2 + 1, x), (16, 16))
    assert trips(module) == [None]


def test_flops_of_matrix_products():
    module = compiled(lambda a, b: a @ b, (32, 48), (48, 64))
    products = [
        hlo.contraction_flops(c, i)
        for c in module.computations.values()
        for i in c.instructions.values()
        if i.opcode == "dot"
    ]
    assert products == [2 * 32 * 48 * 64]


def test_flops_of_a_convolution():
    text = """HloModule m

ENTRY %main (x: bf16[8,196,768], w: bf16[768,192,1]) -> bf16[8,196,192] {
  %x = bf16[8,196,768]{2,1,0} parameter(0)
  %w = bf16[768,192,1]{2,1,0} parameter(1)
  ROOT %y = bf16[8,196,192]{2,1,0} convolution(%x, %w), window={size=1}, dim_labels=b0f_io0->b0f
}
"""
    module = hlo.parse(text)
    assert hlo.matmul_flops(module.computations["main"], module) == 2 * 8 * 196 * 768 * 192
