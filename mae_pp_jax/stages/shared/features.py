"""Normalisation of frozen features: BatchNorm without learned scale, its statistics measured once.

Source: facebookresearch/mae main_linprobe.py (BatchNorm1d, affine=False, eps 1e-6).
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mae_pp_jax.core import partition

EPSILON = 1e-6


def unit_norm(groups: int, width: int) -> dict[str, jax.Array]:
    """Statistics [groups, width] that change nothing, the shape of what `measure` fills in."""
    return {"mean": jnp.zeros((groups, width)), "variance": jnp.ones((groups, width))}


def normalize(norm: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """Features [batch, width] → [batch, groups, width] under the statistics of each group."""
    return normalized(norm, features[:, None], (0,))


def normalized(norm: dict[str, jax.Array], features: jax.Array, extra: tuple[int, ...]) -> jax.Array:
    """Features [groups, width] with more axes at the places `extra`, each under the statistics of its group."""
    mean, variance = (jnp.expand_dims(norm[name], extra) for name in ("mean", "variance"))
    return (features - mean) * jax.lax.rsqrt(variance + EPSILON)


def batch_norm(features: jax.Array) -> jax.Array:
    """Features [batch, …, width] under the mean and variance of the batch, as PyTorch's BatchNorm in training."""
    centered = features - jnp.mean(features, axis=0)
    return centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=0) + EPSILON)


def measure(features: Callable, params, batches: Iterator, count: int, mesh, groups: int = 1) -> dict[str, np.ndarray]:
    """Mean and variance of the features of `count` batches, for each value of `batch["group"]` (or for all).

    Squared deviations are taken from the mean of their own batch, and batches are put together in float64: sums of
    plain squares lose the variance of features whose mean is many times their deviation.

    Args:
      features: (params, batch) → [batch, width].
      params: nested dict of parameters.
      batches: this host's batches.
      count: how many of them to read.
      mesh: the device mesh.
      groups: number of groups; above 1 a batch names the group of each image.

    Returns:
      float32 [groups, width] each.
    """

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def moments(params, batch):
        x = features(params, batch).astype(jnp.float32)
        group = batch["group"] if groups > 1 else jnp.zeros(x.shape[0], jnp.int32)
        member = jax.nn.one_hot(group, groups)

        def sums(x):
            return jnp.einsum("bg,bd->gd", member, x, precision="highest")

        number = jnp.sum(member, 0)[:, None]
        mean = sums(x) / jnp.maximum(number, 1.0)
        x = x - mean[group]
        return number, mean, sums(x), sums(jnp.square(x))

    number = mean = squares = np.zeros((groups, 1))  # squares: of deviations from the mean, summed
    with jax.set_mesh(mesh):
        for _ in range(count):
            found = moments(params, partition.to_global(next(batches), mesh))
            new, center, rest, spread = (np.asarray(value, np.float64) for value in found)
            rest = rest / np.maximum(new, 1)  # what rounding left of the mean
            # Chan, Golub and LeVeque (1979)
            apart, share = center + rest - mean, new / np.maximum(number + new, 1)
            squares = squares + spread - new * rest**2 + apart**2 * number * share
            mean, number = mean + apart * share, number + new
    return {"mean": mean.astype(np.float32), "variance": (squares / number).astype(np.float32)}
