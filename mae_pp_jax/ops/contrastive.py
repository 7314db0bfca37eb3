"""Losses that compare every image of the global batch with every text of it: CLIP's softmax and SigLIP's sigmoid.

The matrix of all pairs is never held. Each device keeps its own images and meets the texts in blocks that are gathered
from all devices; the backward pass computes the blocks again. Memory is therefore linear in a device's own part of the
batch, however many devices there are, and each pair is computed once, on the device of its image.

Rows are examples: image i and text i belong together. What an image and its own text have in common is left out of the
blocks and added row by row, so that the loss of a pair that is told apart well keeps its digits.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mae_pp_jax.core import partition

BLOCK = 1024  # texts of the global batch that an image meets at a time
ROW = ("batch",)
FEATURES = ("batch", None)
Loss = tuple[tuple[jax.Array, jax.Array], jax.Array]  # ((sum, weight), losses [batch])


def unit(features: jax.Array) -> jax.Array:
    """Features [..., width] divided by their length, in float32; zeros stay zero, and nothing below 1e37 overflows."""
    features = features.astype(jnp.float32)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(features), axis=-1, keepdims=True))
    features = features / jnp.where(largest == 0, 1, largest)
    # The largest is now 1, so that the sum is at least 1 but for zeros.
    return features * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(features), axis=-1, keepdims=True), 1))


def softmax_loss(
    images: jax.Array, texts: jax.Array, log_scale: jax.Array, mask: jax.Array | None = None, block: int = BLOCK
) -> Loss:
    """CLIP's loss (Radford et al. 2021): cross-entropy of each image among all texts and of each text among all images.

    With logits s_ij = exp(log_scale) · image_i · text_j, the loss of example i is
    ½ (log Σ_j exp s_ij + log Σ_j exp s_ji) - s_ii.

    Args:
      images: [batch, width], normalised (`unit`); float32, or bfloat16 for faster products that are summed in float32.
      texts: [batch, width], the text of each image.
      log_scale: scalar, logarithm of what cosines are multiplied by (the inverse temperature).
      mask: [batch], 0 on rows that are padding: they have no loss and are compared with nothing. None: all count.
      block: texts of the global batch that an image meets at a time.

    Returns:
      ((sum of the losses, number of examples), losses [batch] in nats, 0 on padding).
    """
    return _loss(_LOGSUMEXP, images, texts, log_scale, 0.0, mask, block)


def sigmoid_loss(
    images: jax.Array,
    texts: jax.Array,
    log_scale: jax.Array,
    bias: jax.Array,
    mask: jax.Array | None = None,
    block: int = BLOCK,
) -> Loss:
    """SigLIP's loss (Zhai et al. 2023): whether an image and a text belong together, asked of every pair by itself.

    With logits s_ij = exp(log_scale) · image_i · text_j + bias, the loss of example i is
    log(1 + exp(-s_ii)) + ½ Σ_{j≠i} (log(1 + exp s_ij) + log(1 + exp s_ji)); their mean is that of the paper, which
    gives the whole of a pair to its image.

    Args:
      images: as for `softmax_loss`.
      texts: as for `softmax_loss`.
      log_scale: scalar, logarithm of what cosines are multiplied by.
      bias: scalar, added to all logits.
      mask: as for `softmax_loss`.
      block: as for `softmax_loss`.

    Returns:
      As `softmax_loss`.
    """
    return _loss(_SOFTPLUS, images, texts, log_scale, bias, mask, block)


class _Reduction(NamedTuple):
    """What becomes of the logits of one image with all other texts, or of one text with all other images.

    Attributes:
      over: (logits, axis) → reduced over the axis. A logit of -inf counts as nothing.
      join: (reduced, reduced) → reduced over both.
      joined: (reduced, axis) → reduced over the parts that lie along the axis.
      empty: reduced over nothing.
      slope: (logit, reduced) → derivative of the reduced by the logit.
      loss: (reduced over others, own logit) → the part of the loss that comes from one side.
    """

    over: Callable
    join: Callable
    joined: Callable
    empty: float
    slope: Callable
    loss: Callable


_LOGSUMEXP = _Reduction(
    over=lambda logits, axis: jax.nn.logsumexp(logits, axis=axis),
    join=jnp.logaddexp,
    joined=lambda parts, axis: jax.nn.logsumexp(parts, axis=axis),
    empty=-jnp.inf,
    # An example without others has nothing to share its probability with.
    slope=lambda logits, whole: jnp.exp(logits - jnp.where(whole == -jnp.inf, jnp.inf, whole)),
    loss=lambda others, own: jax.nn.softplus(others - own),
)
_SOFTPLUS = _Reduction(
    over=lambda logits, axis: jnp.sum(jax.nn.softplus(logits), axis=axis),
    join=jnp.add,
    joined=lambda parts, axis: jnp.sum(parts, axis=axis),
    empty=0.0,
    slope=lambda logits, whole: jax.nn.sigmoid(logits),
    loss=lambda others, own: others + jax.nn.softplus(-own),
)


def _loss(reduction: _Reduction, images, texts, log_scale, bias, mask, block: int) -> Loss:
    valid = jnp.ones(len(images), bool) if mask is None else mask > 0
    # Padding may hold anything, NaN included.
    images, texts = (jnp.where(valid[:, None], partition.constrain(x, FEATURES), 0) for x in (images, texts))
    numbers = jnp.where(valid, jnp.arange(len(images)), -1)
    scale, bias = jnp.exp(jnp.asarray(log_scale, jnp.float32)), jnp.asarray(bias, jnp.float32)
    own = scale * jnp.sum(images.astype(jnp.float32) * texts.astype(jnp.float32), axis=-1) + bias
    of_images, of_texts = _over_others(reduction, block, images, texts, scale, bias, numbers)
    losses = (reduction.loss(of_images, own) + reduction.loss(of_texts, own)) / 2
    losses = jnp.where(valid, losses, 0)
    return (jnp.sum(losses), jnp.sum(valid.astype(jnp.float32))), losses


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _over_others(reduction: _Reduction, block: int, images, texts, scale, bias, numbers):
    """The logits of each image with all texts but its own, reduced, and of each text with all images but its own.

    Args:
      reduction: what is made of them.
      block: texts at a time.
      images: [batch, width].
      texts: [batch, width].
      scale: scalar.
      bias: scalar.
      numbers: int [batch], distinct; -1 leaves an example out.

    Returns:
      ([batch], [batch]), float32.
    """

    def on_device(images, texts, scale, bias, numbers):
        def meet(of_images, column):
            _, logits = _logits(images, numbers, scale, bias, *column)
            return reduction.join(of_images, reduction.over(logits, 1)), reduction.over(logits, 0)

        empty = jnp.full(len(images), reduction.empty)
        columns = _columns(block, texts, numbers)
        of_images, parts = jax.lax.scan(meet, empty, columns)
        # What this device has for the texts of others, [blocks, devices × texts], against what they have for its own.
        parts = parts.reshape(len(parts), -1, columns[0].shape[1])
        of_texts = reduction.joined(_exchanged(parts), 1)
        return of_images, of_texts.reshape(-1)[: len(images)]

    axes = (FEATURES, FEATURES, (), (), ROW)
    return partition.on_each_device(on_device, axes, (ROW, ROW))(images, texts, scale, bias, numbers)


def _forward(reduction: _Reduction, block: int, *arguments):
    of_both = _over_others(reduction, block, *arguments)
    return of_both, (arguments, of_both)


def _backward(reduction: _Reduction, block: int, saved, slopes):
    """Gradients of images, texts, scale and bias."""

    def on_device(images, texts, scale, bias, numbers, of_images, of_texts, d_images, d_texts):
        def meet(sums, column):
            texts, others, of_texts, d_texts = column
            texts, logits = _logits(images, numbers, scale, bias, texts, others)
            of_texts, d_texts = _gathered(of_texts), _gathered(d_texts)
            slope = d_images[:, None] * reduction.slope(logits, of_images[:, None])
            slope += d_texts * reduction.slope(logits, of_texts)
            sums = sums[0] + _product(slope, texts, 1, 0), sums[1] + jnp.sum(slope, axis=1)
            return sums, _summed(_product(slope, images, 0, 0))

        none = jnp.zeros(images.shape, jnp.float32), jnp.zeros(len(images))
        (of_images, of_rows), of_texts = jax.lax.scan(meet, none, _columns(block, texts, numbers, of_texts, d_texts))
        return of_images, of_texts.reshape(-1, texts.shape[1])[: len(images)], of_rows

    arguments, of_both = saved
    images, texts, scale, *_ = arguments
    axes = (FEATURES, FEATURES, (), (), *(ROW,) * 5)
    spread = partition.on_each_device(on_device, axes, (FEATURES, FEATURES, ROW))
    d_images, d_texts, d_bias = spread(*arguments, *of_both, *slopes)
    d_scale = jnp.sum(images.astype(jnp.float32) * d_images)
    d_images, d_texts = (scale * d_images).astype(images.dtype), (scale * d_texts).astype(texts.dtype)
    return d_images, d_texts, d_scale, jnp.sum(d_bias), None


_over_others.defvjp(_forward, _backward)


def _logits(images, numbers, scale, bias, texts, others):
    """(texts of all devices, their logits with the images), -inf where a pair is one example or one is left out.

    Args:
      images: [images, width], a device's own.
      numbers: int [images].
      scale: scalar.
      bias: scalar.
      texts: [texts, width], a block of a device's own.
      others: int [texts], their numbers.
    """
    texts, others = _gathered(texts), _gathered(others)
    logits = scale * _product(images, texts, 1, 1) + bias
    counts = (numbers[:, None] >= 0) & (others >= 0) & (numbers[:, None] != others)
    return texts, jnp.where(counts, logits, -jnp.inf)


def _product(a, b, a_axis: int, b_axis: int) -> jax.Array:
    """Matrix product over an axis of each, summed in float32 and not rounded before."""
    dimensions = ((a_axis,), (b_axis,)), ((), ())
    common = jnp.promote_types(a.dtype, b.dtype)
    a, b = a.astype(common), b.astype(common)
    return jax.lax.dot_general(a, b, dimensions, precision="highest", preferred_element_type=jnp.float32)


def _columns(block: int, texts, numbers, *rows) -> tuple[jax.Array, ...]:
    """Arrays of a device's own texts, cut into equal blocks of which all devices together have about `block`.

    The last one is filled up with texts that are left out.
    """
    blocks = min(len(texts), -(-len(texts) * partition.batch_shards() // block))
    each = -(-len(texts) // blocks)
    blocks = -(-len(texts) // each)

    def cut(x, fill=0):
        widths = ((0, blocks * each - len(x)), *((0, 0),) * (x.ndim - 1))
        return jnp.pad(x, widths, constant_values=fill).reshape(blocks, each, *x.shape[1:])

    return cut(texts), cut(numbers, -1), *map(cut, rows)


def _gathered(x: jax.Array) -> jax.Array:
    """The rows of all devices that share the batch, one device's after the other's."""
    return x if partition.batch_shards() == 1 else jax.lax.all_gather(x, partition.BATCH_AXES, tiled=True)


def _summed(x: jax.Array) -> jax.Array:
    """Sums over devices of what each has for the rows of all, [devices × rows, …]; a device gets its own rows."""
    return x if partition.batch_shards() == 1 else jax.lax.psum_scatter(x, partition.BATCH_AXES, tiled=True)


def _exchanged(x: jax.Array) -> jax.Array:
    """[blocks, devices, …]: what each device has for every other; a device gets what the others have for it."""
    return x if partition.batch_shards() == 1 else jax.lax.all_to_all(x, partition.BATCH_AXES, 1, 1, tiled=True)
