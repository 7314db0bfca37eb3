"""Attention over up to a few thousand tokens as one TPU kernel: scores never leave the chip's vector memory.

XLA's own attention writes the scores [batch, heads, tokens, tokens] to HBM and reads them back several times; with
heads of 64 channels that takes a third of a ViT-L step of 197 tokens. Here a program holds the queries, keys and values
of some heads of some images, so whole rows of scores are at hand: no running maximum, and the backward pass computes
the scores again from the same inputs instead of reading them. Where the scores of all queries would be too many, they
are computed for some queries at a time.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128  # width of a vector register: blocks of channels are multiples of it
_SUBLANES = 16  # rows of a vector register of bfloat16
BLOCK_BYTES = 1 << 20  # about as much of qkv as a program takes; every block is held twice
SCORES_BYTES = 2 << 20  # most float32 scores of one head at a time
VECTOR_MEMORY_BYTES = 64 << 20  # of a chip, that a program may use; XLA allows 16 MiB unless asked
_HELD_TWICE = 2  # blocks of operands: one is moved while the other is used


def heads_of_block(heads: int, head_dim: int, tokens: int) -> int | None:
    """Heads that one program takes: the fewest that fill whole registers; None where the kernel does not fit."""
    count = math.lcm(LANES, head_dim) // head_dim
    held = _HELD_TWICE * 7 * tokens * count * head_dim * 2  # bfloat16: qkv, gradient, and the gradient of qkv
    sums = 2 * tokens * max(head_dim, LANES) * 4  # of the gradients of keys and values
    rows = queries_of_block(tokens)
    fits = heads % count == 0 and rows and held + sums + 4 * SCORES_BYTES <= VECTOR_MEMORY_BYTES
    return count if fits else None


def queries_of_block(tokens: int) -> int:
    """Queries whose scores are computed at a time: all, or a power of two; 0 where not even a register's rows fit."""
    most = SCORES_BYTES // (-(-tokens // LANES) * LANES * 4)
    if most >= tokens:
        return tokens
    return 1 << (most.bit_length() - 1) if most >= _SUBLANES else 0


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
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"),
            vmem_limit_bytes=None if queries_of_block(tokens) == tokens else VECTOR_MEMORY_BYTES,
        ),
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


def _each_block_of_queries(tokens: int, body, carry):
    """`carry` after `body(rows, carry)` for the queries of each block in turn; `rows` indexes their rows."""
    count = queries_of_block(tokens)
    if count == tokens:
        return body(slice(None), carry)
    whole = tokens // count

    def block(number, carry):
        return body(pl.ds(pl.multiple_of(number * count, count), count), carry)

    carry = jax.lax.fori_loop(0, whole, block, carry)
    return body(slice(whole * count, tokens), carry) if tokens % count else carry


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
        key, value = qkv_ref[1, i, :, at], qkv_ref[2, i, :, at]

        def queries(rows, carry):
            probabilities = _probabilities(qkv_ref[0, i, rows, at], key).astype(value.dtype)
            mixed = jnp.dot(probabilities, value, preferred_element_type=jnp.float32)
            out_ref[i, rows, at] = mixed.astype(out_ref.dtype)
            return carry

        _each_block_of_queries(out_ref.shape[1], queries, None)

    _each_head(*out_ref.shape[::2], head_dim, head)


def _backward(qkv_ref, gradient_ref, out_ref, *, head_dim: int):
    def head(i, at):
        key, value = qkv_ref[1, i, :, at], qkv_ref[2, i, :, at]

        def queries(rows, sums):
            query, gradient = qkv_ref[0, i, rows, at], gradient_ref[i, rows, at]
            p = _probabilities(query, key)
            dp = _product(gradient, value, 1, 1)
            ds = p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True)) * head_dim**-0.5
            p, ds = p.astype(query.dtype), ds.astype(query.dtype)
            out_ref[0, i, rows, at] = _product(ds, key, 1, 0).astype(out_ref.dtype)
            found = _product(ds, query, 0, 0), _product(p, gradient, 0, 0)
            return found if sums is None else tuple(map(jnp.add, sums, found))

        tokens = gradient_ref.shape[1]
        zeros = (jnp.zeros((tokens, head_dim), jnp.float32),) * 2
        sums = _each_block_of_queries(tokens, queries, None if queries_of_block(tokens) == tokens else zeros)
        for part, value in enumerate(sums, 1):
            out_ref[part, i, :, at] = value.astype(out_ref.dtype)

    _each_head(*gradient_ref.shape[::2], head_dim, head)
