"""Attention of short sequences as one TPU kernel per block: scores never leave the chip's vector memory.

XLA's own attention over a few hundred tokens writes the scores [batch, heads, tokens, tokens] to HBM and reads them
back several times; with heads of 64 channels that takes a third of a ViT-L step. Here a program holds the queries, keys
and values of some heads of some images, so a whole row of scores is at hand: no running maximum, and the backward pass
computes the scores again from the same inputs instead of reading them.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128  # width of a vector register: blocks of channels are multiples of it
BLOCK_BYTES = 1 << 20  # about as much of qkv as a program takes; every block is held twice
SCORES_BYTES = 2 << 20  # largest float32 score matrix of one head


def heads_of_block(heads: int, head_dim: int, tokens: int) -> int | None:
    """Heads that one program takes: the fewest that fill whole registers; None where the kernel does not fit."""
    count = math.lcm(LANES, head_dim) // head_dim
    fits = heads % count == 0 and tokens * (-(-tokens // LANES) * LANES) * 4 <= SCORES_BYTES
    return count if fits else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def attend(qkv: jax.Array, heads: int, interpret: bool = False) -> jax.Array:
    """softmax(query · keyᵀ / √head_dim) · value, scores in float32.

    Args:
      qkv: [3, batch, tokens, width], queries, keys and values with the channels of all heads after one another.
      heads: number of heads; `heads_of_block` must know a block for them.
      interpret: runs the kernel in JAX, for tests on other platforms.

    Returns:
      [batch, tokens, width], in the dtype of `qkv`.
    """
    return _call(_forward, [qkv], qkv.shape[1:], heads, interpret, matmuls=2)


def _attend_forward(qkv, heads, interpret):
    return attend(qkv, heads, interpret), qkv


def _attend_backward(heads, interpret, qkv, gradient):
    return (_call(_backward, [qkv, gradient], qkv.shape, heads, interpret, matmuls=5),)


attend.defvjp(_attend_forward, _attend_backward)


def _call(kernel, inputs: list[jax.Array], out_shape: tuple[int, ...], heads: int, interpret: bool, *, matmuls: int):
    """Runs a kernel over a grid of (images, heads); arrays are [3, batch, tokens, width] or [batch, tokens, width]."""
    _, batch, tokens, width = inputs[0].shape
    head_dim, dtype = width // heads, inputs[0].dtype
    count = heads_of_block(heads, head_dim, tokens)
    room = max(1, BLOCK_BYTES // (3 * count * head_dim * tokens * dtype.itemsize))
    images = max(divisor for divisor in range(1, min(room, batch) + 1) if batch % divisor == 0)
    block = (images, tokens, count * head_dim)

    def spec(shape):
        if len(shape) == 4:
            return pl.BlockSpec((3, *block), lambda b, h: (0, b, 0, h))
        return pl.BlockSpec(block, lambda b, h: (b, 0, h))

    moved = sum(x.size for x in inputs) + math.prod(out_shape)
    return pl.pallas_call(
        functools.partial(kernel, head_dim=head_dim),
        grid=(batch // images, heads // count),
        in_specs=[spec(x.shape) for x in inputs],
        out_specs=spec(out_shape),
        out_shape=jax.ShapeDtypeStruct(out_shape, dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=matmuls * 2 * batch * tokens * tokens * width,
            transcendentals=batch * heads * tokens * tokens,
            bytes_accessed=moved * dtype.itemsize,
        ),
        interpret=interpret,
    )(*inputs)


def _each_head(images: int, lanes: int, head_dim: int, body):
    """Calls `body(image, channels)` for every image of a block and every head of it."""

    def image(i, carry):
        for start in range(0, lanes, head_dim):
            body(i, slice(start, start + head_dim))
        return carry

    jax.lax.fori_loop(0, images, image, None)


def _product(a, b, a_axis: int, b_axis: int):
    """The matrix product that sums over axis `a_axis` of a and `b_axis` of b, in float32."""
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)


def _probabilities(query, key):
    """softmax(query · keyᵀ / √head_dim) [tokens, tokens] in float32."""
    scores = _product(query, key, 1, 1) * query.shape[-1] ** -0.5
    exponentials = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return exponentials / jnp.sum(exponentials, axis=-1, keepdims=True)


def _forward(qkv_ref, out_ref, *, head_dim: int):
    def head(i, at):
        query, key, value = (qkv_ref[part, i, :, at] for part in range(3))
        probabilities = _probabilities(query, key).astype(value.dtype)
        out_ref[i, :, at] = jnp.dot(probabilities, value, preferred_element_type=jnp.float32).astype(out_ref.dtype)

    _each_head(*out_ref.shape[::2], head_dim, head)


def _backward(qkv_ref, gradient_ref, out_ref, *, head_dim: int):
    def head(i, at):
        query, key, value = (qkv_ref[part, i, :, at] for part in range(3))
        gradient = gradient_ref[i, :, at]
        p = _probabilities(query, key)
        dp = _product(gradient, value, 1, 1)
        ds = p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True)) * head_dim**-0.5
        p, ds = p.astype(query.dtype), ds.astype(query.dtype)
        for part, value in enumerate((_product(ds, key, 1, 0), _product(ds, query, 0, 0), _product(p, gradient, 0, 0))):
            out_ref[part, i, :, at] = value.astype(out_ref.dtype)

    _each_head(*gradient_ref.shape[::2], head_dim, head)
