"""Normalisation of frozen features: BatchNorm without learned scale, its statistics measured once.

Source: facebookresearch/mae main_linprobe.py (BatchNorm1d, affine=False, eps 1e-6).
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from mae_pp_jax.core import partition

EPSILON = 1e-6


def unit_norm(groups: int, width: int) -> dict[str, jax.Array]:
    """Statistics [groups, width] that change nothing, the shape of what `measure` fills in."""
    return {"mean": jnp.zeros((groups, width)), "variance": jnp.ones((groups, width))}


def normalize(norm: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """Features [batch, width] → [batch, groups, width] under the statistics of each group."""
    return (features[:, None] - norm["mean"]) * jax.lax.rsqrt(norm["variance"] + EPSILON)


def measure(features: Callable, params, batches: Iterator, count: int, mesh, groups: int = 1) -> dict[str, jax.Array]:
    """Mean and variance of the features of `count` batches, for each value of `batch["group"]` (or for all).

    Args:
      features: (params, batch) → [batch, width].
      params: nested dict of parameters.
      batches: this host's batches.
      count: how many of them to read.
      mesh: the device mesh.
      groups: number of groups; above 1 a batch names the group of each image.
    """

    @jax.jit
    def sums(params, batch):
        x = features(params, batch).astype(jnp.float32)
        member = jax.nn.one_hot(batch["group"], groups) if groups > 1 else jnp.ones((x.shape[0], 1))
        return jnp.sum(member, 0), member.T @ x, member.T @ (x * x)

    with jax.set_mesh(mesh):
        totals = None
        for _ in range(count):
            new = sums(params, partition.to_global(next(batches), mesh))
            totals = new if totals is None else jax.tree.map(jnp.add, totals, new)
        weight, total, squares = totals
        mean = total / weight[:, None]
        variance = jnp.maximum(squares / weight[:, None] - mean * mean, 0.0)
    return {"mean": mean, "variance": variance}
