"""Accuracy over several draws of labelled images."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from mae_pp_jax.evaluation.averages import total


class OverSplits:
    """Mean and sample standard deviation over splits of (sum, weight) measures.

    Args:
      name: the part before the slash in metric names.
      measure: (params, batch) → name → (sums [splits], weights [splits]).
      batches: opens one pass over the evaluation data.
    """

    def __init__(self, name: str, measure: Callable, batches: Callable[[], Iterator]):
        self.name, self._measure, self._batches = name, jax.jit(measure), batches

    def run(self, params, mesh) -> dict[str, float]:
        sums = total(self._measure, params, self._batches(), mesh)
        out: dict[str, float] = {}
        for name, (s, w) in sums.items():
            s, w = np.asarray(s, np.float64), np.asarray(w, np.float64)
            values = np.divide(s, w, out=np.full_like(s, np.nan), where=w > 0)
            out[f"{self.name}/{name}"] = float(values.mean())
            if len(values) > 1:
                out[f"{self.name}/{name}_std"] = float(values.std(ddof=1))
            out[f"{self.name}/splits"] = len(values)
        return out
