"""Averages of per-image measures over an evaluation split."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from mae_pp_jax.core import hosts, partition


def total(measure: Callable, params, batches: Iterator, mesh):
    """Sums `measure(params, batch)`, a pytree of arrays, over all batches; `measure` is a jitted function."""
    out = None
    with jax.set_mesh(mesh):
        for batch in batches:
            new = measure(params, partition.to_global(batch, mesh))
            out = new if out is None else jax.tree.map(jnp.add, out, new)
    return hosts.gather(out)


class Averages:
    """(sum, weight) measures of one split, exact under padding of the last batch and any number of hosts.

    Args:
      name: split, the part before the slash in metric names.
      measure: (params, batch) → name → (sum, weight); the batch has `mask` [batch], 0 on padding.
      batches: opens one pass over the split.
    """

    def __init__(self, name: str, measure: Callable, batches: Callable[[], Iterator]):
        self.name, self._measure, self._batches = name, jax.jit(measure), batches

    def run(self, params, mesh) -> dict[str, float]:
        sums = total(self._measure, params, self._batches(), mesh)
        return {f"{self.name}/{name}": float(s) / float(w) if w else float("nan") for name, (s, w) in sums.items()}
