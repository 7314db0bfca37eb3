"""Augmentation on the accelerator, inside the jitted step, from the uint8 batch that the host sends."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mae_pp_jax.core import rng


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
