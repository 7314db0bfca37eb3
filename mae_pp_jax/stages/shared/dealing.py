"""Batches that are dealt out to independent models in turn, each with images of its own."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np


def deal(
    streams: Sequence[Iterator[dict[str, np.ndarray]]], names: Sequence[str], in_a_row: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """One batch of the batches of several streams; `group` names the stream of an example.

    In turn, so that a batch has the same order however many processes read it.

    Args:
      streams: of batches of equal size.
      names: the arrays to take from them.
      in_a_row: examples of a stream that follow one another.
    """
    for parts in zip(*streams, strict=True):
        rounds = len(parts[0][names[0]]) // in_a_row
        joined = {name: _in_turn([part[name] for part in parts], in_a_row) for name in names}
        group = np.tile(np.repeat(np.arange(len(parts), dtype=np.int32), in_a_row), rounds)
        yield {**joined, "group": group}


def _in_turn(parts: list[np.ndarray], in_a_row: int) -> np.ndarray:
    rest = parts[0].shape[1:]
    stacked = np.stack([part.reshape(-1, in_a_row, *rest) for part in parts], axis=1)
    return stacked.reshape(-1, *rest)


def dealt_keys(keys: jax.Array, models: int, in_a_row: int) -> jax.Array:
    """Keys [batch] in the order of `deal`: key i of model m does not depend on how many others there are."""
    return keys.reshape(models, -1, in_a_row).swapaxes(0, 1).reshape(-1)


def by_split(tree, splits: int):
    """Leaves [splits · models, …] as [splits, models, …]."""
    return jax.tree.map(lambda leaf: leaf.reshape(splits, -1, *leaf.shape[1:]), tree)
