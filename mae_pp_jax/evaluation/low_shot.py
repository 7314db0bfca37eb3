"""Accuracy over several draws of labelled images, and the choice of a learning rate for each."""

import logging
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from mae_pp_jax.evaluation.averages import total

log = logging.getLogger(__name__)

# (params of all models, mesh) → (params of one model for each split, what to report of the choice)
Choose = Callable[..., tuple[dict, dict[str, float]]]


class OverSplits:
    """Mean and sample standard deviation over splits of (sum, weight) measures.

    Args:
      name: the part before the slash in metric names.
      measure: (params, batch) → name → (sums [splits], weights [splits]).
      batches: opens one pass over the evaluation data.
      choose: which models are measured; None: those in the parameters.
    """

    def __init__(
        self, name: str, measure: Callable, batches: Callable[[], Iterator], choose: Choose = lambda p, mesh: (p, {})
    ):
        self.name, self._measure, self._batches, self._choose = name, jax.jit(measure), batches, choose

    def run(self, params, mesh) -> dict[str, float]:
        params, chosen = self._choose(params, mesh)
        sums = total(self._measure, params, self._batches(), mesh)
        out: dict[str, float] = {}
        for name, (s, w) in sums.items():
            s, w = np.asarray(s, np.float64), np.asarray(w, np.float64)
            values = np.divide(s, w, out=np.full_like(s, np.nan), where=w > 0)
            out[f"{self.name}/{name}"] = float(values.mean())
            if len(values) > 1:
                out[f"{self.name}/{name}_std"] = float(values.std(ddof=1))
            out[f"{self.name}/splits"] = len(values)
        return out | {f"{self.name}/{name}": value for name, value in chosen.items()}


class Picker:
    """For each split the best of several models that differ by their learning rate, on images that it was not drawn.

    The best has the highest accuracy, of several such the lowest loss, of several such the first factor.

    Args:
      factors: on the learning rate, one for each model of a split.
      take: (params, choice [splits]) → params of one model for each split, the chosen ones.
      complete: (params of one model for each split, mesh) → the same with what is measured before an evaluation.
      measure: (params of one model for each split, batch) → {"accuracy", "loss"} → (sums [splits], weights [splits]);
        an image counts for its own split.
      batches: opens one pass over the images to choose on.
    """

    def __init__(
        self,
        factors: Sequence[float],
        take: Callable,
        complete: Callable,
        measure: Callable,
        batches: Callable[[], Iterator],
    ):
        self._factors, self._take, self._complete = factors, take, complete
        self._measure, self._batches = jax.jit(measure), batches
        self._last: tuple = (None, None)  # of one evaluation: params and what was chosen

    def __call__(self, params, mesh) -> tuple[dict, dict[str, float]]:
        if self._last[0] is not params:
            self._last = (params, self._chosen(params, mesh))
        return self._last[1]

    def _chosen(self, params, mesh) -> tuple[dict, dict[str, float]]:
        if len(self._factors) == 1:
            return self._complete(self._take(params, 0), mesh), {}
        found = []
        for factor in range(len(self._factors)):
            candidates = self._complete(self._take(params, factor), mesh)
            sums = total(self._measure, candidates, self._batches(), mesh)
            found.append({name: np.asarray(s, np.float64) / np.asarray(w) for name, (s, w) in sums.items()})
        accuracy, loss = (np.stack([each[name] for each in found]) for name in ("accuracy", "loss"))
        # A model that has diverged is never the best of several.
        order = np.lexsort((np.where(np.isfinite(loss), loss, np.inf), -accuracy), axis=0)
        choice = order[0]
        notes = {f"lr_factor_{split}": self._factors[index] for split, index in enumerate(choice)}
        picked = np.take_along_axis(accuracy, choice[None], axis=0)
        log.info("picked factors on the learning rate: %s", " ".join(f"{value:g}" for value in notes.values()))
        notes["selection_accuracy"] = float(picked.mean())
        return self._complete(self._take(params, choice), mesh), notes
