"""Weighted nearest neighbours by cosine similarity (facebookresearch/dino eval_knn.py, Wu et al. 2018).

The k most similar training images vote for their class with weight exp(similarity / temperature).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.evaluation import classify, nearest

TEMPERATURE = 0.07
TEST_BLOCK = 1024  # images that votes are counted for at a time


def measure(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    *,
    classes: int,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
) -> dict[int, dict[str, float]]:
    """Number of neighbours → `accuracy` and, where there are more than five classes, `accuracy_top5`.

    One pass over the training images serves all numbers of neighbours; memory does not grow with their product.

    Args:
      train: [images, width], features of any length; they are normalised here. May be mapped from a file.
      train_labels: int [images].
      test: [images, width].
      test_labels: int [images].
      classes: number of classes.
      ks: numbers of neighbours, each at most the number of training images.
      temperature: of the weights.
    """
    if max(ks) > len(train_labels):
        raise ValueError(f"{max(ks)} neighbours of {len(train_labels)} training images")
    similar, found = nearest.top_k(train, test, max(ks))
    sums = {k: {} for k in ks}
    for start in range(0, len(test_labels), TEST_BLOCK):
        rows = slice(start, start + TEST_BLOCK)
        counted = _count(similar[rows], train_labels[found[rows]], test_labels[rows], classes, tuple(ks), temperature)
        for k, measures in counted.items():
            for name, (hits, _) in measures.items():
                sums[k][name] = sums[k].get(name, 0.0) + float(hits)
    return {k: {name: hits / len(test_labels) for name, hits in own.items()} for k, own in sums.items()}


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _count(similar, near_labels, labels, classes: int, ks: tuple[int, ...], temperature: float):
    """Number of neighbours → measures of a block of test images, each (sum, weight)."""
    weights, rows = jnp.exp(similar / temperature), jnp.arange(len(labels))[:, None]
    out = {}
    for k in ks:
        votes = jnp.zeros((len(labels), classes)).at[rows, near_labels[:, :k]].add(weights[:, :k])
        out[k] = classify.accuracy(votes, labels, jnp.ones(len(labels)))
    return out
