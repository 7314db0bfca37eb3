"""Accuracy of what a probe answers, block by block, as `evaluation.classify` counts it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.evaluation import classify

BLOCK = 4096  # images scored at a time

_accuracy = jax.jit(classify.accuracy)


def accuracy(scores: Callable[[np.ndarray], np.ndarray], features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 accuracy and, where there are more than five classes, top-5.

    Args:
      scores: features [block, width] → scores [block, classes], higher where a class is likelier.
      features: [images, width].
      labels: int [images].

    Returns:
      `accuracy` and `accuracy_top5`, as fractions.
    """
    sums: dict[str, float] = {}
    for start in range(0, len(labels), BLOCK):
        found = scores(np.asarray(features[start : start + BLOCK]))
        own = labels[start : start + BLOCK]
        for name, (hits, _) in _accuracy(jnp.asarray(found, jnp.float32), own, np.ones(len(own), np.float32)).items():
            sums[name] = sums.get(name, 0.0) + float(hits)
    return {name: hits / len(labels) for name, hits in sums.items()}


class Standard:
    """Brings features to mean 0 and deviation 1, in float64; 1e-5 is added to deviations (big_vision fewshot_lsr.py).

    Args:
      features: [images, width], those whose mean and deviation count.
    """

    def __init__(self, features: np.ndarray):
        features = np.asarray(features, np.float64)
        self._mean, self._deviation = features.mean(0), features.std(0) + 1e-5

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self._mean) / self._deviation
