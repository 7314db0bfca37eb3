"""Augmentation on the accelerator, inside the jitted step, from the uint8 batch that the host sends.

Random erasing, mixup and cutmix are those of timm (`RandomErasing(mode="pixel")`, `Mixup(mode="batch")`).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mae_pp_jax.core import rng

_TRIES = 10
ERASE_DRAWS = 2 * _TRIES + 3  # numbers that one image takes: whether it is erased, the tries, the place
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # shares of the area; height / width


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype=jnp.float32) -> jax.Array:
    """Scales uint8 pixels to (pixel / 255 - mean) / std.

    Args:
      images: uint8 [batch, height, width, 3].
      mean: of each channel, in [0, 1].
      std: of each channel, in [0, 1].
      dtype: of the result; the arithmetic is float32.
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return ((images.astype(jnp.float32) / 255 - mean) / std).astype(dtype)


def random_flip(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirrors images [batch, height, width, channels] left to right, each with probability one half by its key."""
    flip = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (1, 1, 1)))(rng.stream(keys, "flip"))
    return jnp.where(flip, images[:, :, ::-1], images)


def denormalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """The inverse of `normalize`, clipped and rounded to uint8, for pictures."""
    pixels = images.astype(jnp.float32) * jnp.asarray(std, jnp.float32) + jnp.asarray(mean, jnp.float32)
    return jnp.round(jnp.clip(pixels, 0, 1) * 255).astype(jnp.uint8)


def random_erase(images: jax.Array, keys: jax.Array, probability: float) -> jax.Array:
    """Replaces a rectangle by normal noise in a share of the images, each by its key (Zhong et al. 2017).

    Args:
      images: normalised floats [batch, height, width, channels].
      keys: [batch].
      probability: that an image loses a rectangle.
    """
    keys = rng.stream(keys, "erase")
    draws = jax.vmap(lambda key: jax.random.uniform(key, (ERASE_DRAWS,)))(keys)
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(
        rng.stream(keys, "erase_noise")
    )
    return jnp.where(_inside(erased_boxes(draws, images.shape[1:3], probability), images.shape[1:3]), noise, images)


def erased_boxes(draws: jax.Array, size: tuple[int, int], probability: float) -> jax.Array:
    """The rectangles that random erasing takes.

    Area uniform between 2% and a third of the image's, height / width log-uniform between 0.3 and 1 / 0.3; the first of
    ten tries that is smaller than the image counts, and where none is, nothing is erased.

    Args:
      draws: [batch, ERASE_DRAWS], uniform in [0, 1): whether; area and aspect of each try; top and left.
      size: (height, width) in pixels.
      probability: that an image loses a rectangle.

    Returns:
      int32 [batch, 4]: top, bottom, left, right; bottom and right are outside. Zeros where nothing is erased.
    """
    height, width = size
    (least, most), (low, high) = _ERASED_AREA, map(math.log, _ERASED_ASPECT)
    area = (least + (most - least) * draws[:, 1:-2:2]) * (height * width)
    aspect = jnp.exp(low + (high - low) * draws[:, 2:-2:2])
    tall, wide = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))  # [batch, tries]
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    tall, wide = (jnp.take_along_axis(side, first, axis=1)[:, 0] for side in (tall, wide))
    top, left = jnp.floor(draws[:, -2] * (height - tall + 1)), jnp.floor(draws[:, -1] * (width - wide + 1))
    boxes = jnp.stack([top, top + tall, left, left + wide], axis=1).astype(jnp.int32)
    acts = (draws[:, 0] <= probability) & jnp.any(fits, axis=1)
    return jnp.where(acts[:, None], boxes, 0)


def mix_weights(
    key: jax.Array, size: tuple[int, int], *, mixup: float, cutmix: float, probability: float, switch: float
) -> tuple[jax.Array, jax.Array]:
    """How a batch is mixed with its partners, by mixup (Zhang et al. 2017) or cutmix (Yun et al. 2019).

    Args:
      key: one for the whole batch.
      size: (height, width) of the images in pixels.
      mixup: α of mixup's share, drawn from Beta(α, α); 0: no mixup.
      cutmix: α of cutmix's; 0: no cutmix. One of them is above 0.
      probability: that the batch is mixed at all.
      switch: probability of cutmix, where both are above 0.

    Returns:
      (share of an image's own label [], weight of its own pixels [height, width, 1]); its partner has the rest.
    """
    whether, which, share_key, place = jax.random.split(key, 4)
    switch = switch if mixup and cutmix else float(cutmix > 0)
    cuts = jax.random.uniform(which) < switch
    alpha = jnp.where(cuts, cutmix, mixup)
    share = jnp.where(jax.random.uniform(whether) < probability, jax.random.beta(share_key, alpha, alpha), 1.0)
    box = cut_box(share, jax.random.uniform(place, (2,)), size)
    outside = 1.0 - _inside(box[None], size)[0]
    return jnp.where(cuts, jnp.mean(outside), share), jnp.where(cuts, outside, share)


def cut_box(share: jax.Array, draws: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The rectangle that cutmix takes from the partner: 1 - share of the area about a random centre, cut at the borders.

    Args:
      share: that the image keeps, before the cut at the borders.
      draws: [2], uniform in [0, 1), for the centre.
      size: (height, width) in pixels.

    Returns:
      int32 [4]: top, bottom, left, right; bottom and right are outside.
    """
    size = jnp.array(size)
    half = jnp.floor(size * jnp.sqrt(1.0 - share)).astype(jnp.int32) // 2
    centre = jnp.floor(draws * size).astype(jnp.int32)
    return jnp.stack([jnp.maximum(centre - half, 0), jnp.minimum(centre + half, size)], axis=1).reshape(4)


def _inside(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Whether each pixel is in the box of its image: [batch, 4] → bool [batch, height, width, 1]."""
    rows, columns = jnp.arange(size[0])[:, None, None], jnp.arange(size[1])[:, None]
    top, bottom, left, right = (boxes[:, i, None, None, None] for i in range(4))
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
