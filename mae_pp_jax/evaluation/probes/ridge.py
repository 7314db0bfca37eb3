"""Least squares with an L2 penalty in closed form (google-research/big_vision evaluators/fewshot_lsr.py).

Features are brought to mean 0 and deviation 1, a constant feature of 100 stands for an almost free intercept, and the
targets are 1 for the class and -1 for the others. All in float64 on the host: the constant feature alone costs float32
the digits that matter.
"""

import dataclasses

import numpy as np

BIAS = 100.0
L2 = 1024.0  # of big_vision
_LITTLE = 1e-5  # added to deviations


@dataclasses.dataclass(frozen=True)
class Ridge:
    """The solutions for all penalties at once: weights are left · right / (eigenvalues + penalty).

    Attributes:
      mean: float64 [width].
      deviation: float64 [width].
      eigenvalues: float64 [least of images and width + 1].
      left: float64 [width + 1, eigenvalues].
      right: float64 [eigenvalues, classes].
    """

    mean: np.ndarray
    deviation: np.ndarray
    eigenvalues: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def weights(self, l2: float) -> np.ndarray:
        """float64 [width + 1, classes] for a penalty l2 · |weights|² beside the summed squares; the last row is that
        of the constant feature."""
        return (self.left / (self.eigenvalues + l2)) @ self.right

    def prepared(self, features: np.ndarray) -> np.ndarray:
        """Features [images, width] as they are regressed on: float64 [images, width + 1]."""
        return _with_bias((features - self.mean) / self.deviation)


def fit(features: np.ndarray, labels: np.ndarray, classes: int) -> Ridge:
    """Decomposes the problem once for all penalties, over the smaller of images and width.

    Args:
      features: [images, width].
      labels: int [images].
      classes: number of classes.
    """
    features = np.asarray(features, np.float64)
    mean, deviation = features.mean(0), features.std(0) + _LITTLE
    x = _with_bias((features - mean) / deviation)
    targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    if len(x) >= x.shape[1]:
        eigenvalues, vectors = np.linalg.eigh(x.T @ x)
        left, right = vectors, vectors.T @ (x.T @ targets)
    else:
        eigenvalues, vectors = np.linalg.eigh(x @ x.T)
        left, right = x.T @ vectors, vectors.T @ targets
    return Ridge(mean, deviation, eigenvalues, left, right)


def _with_bias(x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)
