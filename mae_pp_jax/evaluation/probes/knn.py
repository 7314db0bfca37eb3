"""Weighted nearest neighbours by cosine similarity (facebookresearch/dino eval_knn.py, Wu et al. 2018).

The k most similar training images vote for their class with weight exp(similarity / temperature).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.evaluation import classify

TEMPERATURE = 0.07
TRAIN_BLOCK, TEST_BLOCK = 16384, 1024  # images compared at a time: 64 MiB of similarities


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
    similar, found = neighbours(train, test, max(ks))
    sums = {k: {} for k in ks}
    for start in range(0, len(test_labels), TEST_BLOCK):
        rows = slice(start, start + TEST_BLOCK)
        counted = _count(similar[rows], train_labels[found[rows]], test_labels[rows], classes, tuple(ks), temperature)
        for k, measures in counted.items():
            for name, (hits, _) in measures.items():
                sums[k][name] = sums[k].get(name, 0.0) + float(hits)
    return {k: {name: hits / len(test_labels) for name, hits in own.items()} for k, own in sums.items()}


def neighbours(train: np.ndarray, test: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar training images of each test image, the most similar first; of equal ones the earlier one.

    Args:
      train: [images, width].
      test: [images, width].
      k: how many, at most the number of training images.

    Returns:
      (cosine similarities, float32 [test images, k]; indices of training images, int32 [test images, k]).
    """
    blocks = [(jnp.asarray(part), len(part)) for part in _blocks(test, TEST_BLOCK)]
    best = [(jnp.full((TEST_BLOCK, k), -jnp.inf, jnp.float32), jnp.zeros((TEST_BLOCK, k), jnp.int32)) for _ in blocks]
    for number, part in enumerate(_blocks(train, TRAIN_BLOCK)):
        near = _padded(part, TRAIN_BLOCK)
        at = np.int32(number * TRAIN_BLOCK)
        for i, (own, _) in enumerate(blocks):
            best[i] = _nearer(best[i], _padded(own, TEST_BLOCK), near, at, np.int32(len(part)))
    rows = [tuple(np.asarray(array[:count]) for array in pair) for pair, (_, count) in zip(best, blocks, strict=True)]
    return tuple(np.concatenate(arrays) for arrays in zip(*rows, strict=True))


def _blocks(features: np.ndarray, size: int):
    for start in range(0, len(features), size):
        yield features[start : start + size]


def _padded(block, size: int):
    return jnp.pad(jnp.asarray(block, jnp.float32), ((0, size - len(block)), (0, 0)))


@jax.jit
def _nearer(best, test, train, start, count):
    """The best so far and a block of training images, of which `count` from index `start` on are real, as new best."""
    similar = jnp.matmul(_unit(test), _unit(train).T, precision="highest")
    places = jnp.arange(similar.shape[1], dtype=jnp.int32)
    similar = jnp.where(places < count, similar, -jnp.inf)
    most = best[0].shape[1]
    new, chosen = jax.lax.top_k(similar, min(most, similar.shape[1]))
    both = jnp.concatenate([best[0], new], 1), jnp.concatenate([best[1], chosen.astype(jnp.int32) + start], 1)
    values, chosen = jax.lax.top_k(both[0], most)  # of equal ones the first: of an earlier block
    return values, jnp.take_along_axis(both[1], chosen, 1)


def _unit(features):
    return features / jnp.maximum(jnp.linalg.norm(features, axis=1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _count(similar, near_labels, labels, classes: int, ks: tuple[int, ...], temperature: float):
    """Number of neighbours → measures of a block of test images, each (sum, weight)."""
    weights, rows = jnp.exp(similar / temperature), jnp.arange(len(labels))[:, None]
    out = {}
    for k in ks:
        votes = jnp.zeros((len(labels), classes)).at[rows, near_labels[:, :k]].add(weights[:, :k])
        out[k] = classify.accuracy(votes, labels, jnp.ones(len(labels)))
    return out
