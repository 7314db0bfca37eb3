"""Values that vary in number between records, such as hashtags, in arrays of a fixed shape."""

from collections.abc import Callable

import numpy as np


def pad(
    values: np.ndarray, most: int, choose: Callable[[np.ndarray], np.ndarray], fill: int = -1
) -> tuple[np.ndarray, int]:
    """Values of one record in an array of a fixed shape.

    Args:
      values: [n, …].
      most: values kept.
      choose: gives the order of preference of `values`, int [n]; called where there are more than `most`.
      fill: stands in the places that are left.

    Returns:
      [most, …] in the order of `values`, and how many of these were cut.
    """
    number, cut = len(values), max(len(values) - most, 0)
    if cut:
        values = values[np.sort(choose(values)[:most])]
    out = np.empty((most, *values.shape[1:]), values.dtype)  # not np.full, which takes longer than all of this
    out[:number], out[number:] = values, fill
    return out, cut


def rarest(counts: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """An order of preference for `pad`: ids that few records have first; `counts` int [names] tells how many."""
    return np.argsort(counts[ids], kind="stable")


def drawn(number: float, values: np.ndarray) -> np.ndarray:
    """An order of preference for `pad`: at random, as a pure function of a number uniform in [0, 1)."""
    return np.random.default_rng(int(number * 2**53)).permutation(len(values))
