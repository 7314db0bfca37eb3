"""Least squares with an L2 penalty in closed form (google-research/big_vision evaluators/fewshot_lsr.py).

Features are to have mean 0 and deviation 1 (`scoring.Standard`), a constant feature of 100 stands for an almost free
intercept, and the targets are 1 for the class and -1 for the others. All in float64 on the host: the constant feature
alone costs float32 the digits that matter.
"""

from collections.abc import Sequence

import numpy as np

BIAS = 100.0
L2 = 1024.0  # of big_vision


def fit(x: np.ndarray, labels: np.ndarray, classes: int, penalties: Sequence[float]) -> dict[float, np.ndarray]:
    """Penalty → weights, float64 [width + 1, classes], the last row for the constant feature.

    One decomposition, over the smaller of images and width, serves all penalties.

    Args:
      x: float64 [images, width].
      labels: int [images].
      classes: number of classes.
      penalties: values of l2, of l2 · |weights|² beside the summed squares.
    """
    x = with_bias(x)
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    if len(x) >= x.shape[1]:
        eigenvalues, vectors = np.linalg.eigh(x.T @ x)
        left, right = vectors, vectors.T @ (x.T @ targets)
    else:
        eigenvalues, vectors = np.linalg.eigh(x @ x.T)
        left, right = x.T @ vectors, vectors.T @ targets
    return {l2: (left / (eigenvalues + l2)) @ right for l2 in penalties}


def with_bias(x: np.ndarray) -> np.ndarray:
    """Features [images, width] with the constant feature, [images, width + 1]."""
    return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)
