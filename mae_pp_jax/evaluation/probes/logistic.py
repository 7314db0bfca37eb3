"""Multinomial logistic regression with an L2 penalty by L-BFGS, as MSN judges few labels (facebookresearch/msn
logistic_eval.py): each feature vector loses its own mean and gets length 1, and there is no intercept.

It minimises sum of cross entropies + l2 / 2 · |weights|², scikit-learn's objective with C = 1 / l2. MSN's l2 is 0.00025.
SciPy's L-BFGS-B in float64 on the host: a few labelled images make problems of milliseconds, and float32 would end the
line search before the weights are exact.
"""

from collections.abc import Sequence

import numpy as np
import scipy.optimize

L2 = 2.5e-4  # of MSN
_TOLERANCE = 1e-7  # largest component of the gradient of the mean loss at which it has converged
_MOST_STEPS = 10_000


def prepared(features: np.ndarray) -> np.ndarray:
    """Features [images, width] as they are classified: float64, of mean 0 and length 1 each."""
    features = np.asarray(features, np.float64)
    features = features - features.mean(1, keepdims=True)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def fit(x: np.ndarray, labels: np.ndarray, classes: int, penalties: Sequence[float]) -> dict[float, np.ndarray]:
    """Penalty → weights, float64 [width, classes]; each starts from those of the next stronger penalty.

    Args:
      x: float64 [images, width], see `prepared`.
      labels: int [images].
      classes: number of classes.
      penalties: values of l2, above 0.

    Raises:
      ArithmeticError: it did not converge.
    """
    count, rows = len(x), np.arange(len(x))
    found, weights = {}, np.zeros((x.shape[1], classes))
    for l2 in sorted(set(penalties), reverse=True):

        def loss(flat: np.ndarray, l2=l2) -> tuple[float, np.ndarray]:
            own = flat.reshape(weights.shape)
            logits = x @ own
            logits -= logits.max(1, keepdims=True)
            right = logits[rows, labels]
            odds = np.exp(logits, out=logits)
            total = odds.sum(1, keepdims=True)
            value = np.sum(np.log(total[:, 0]) - right) + l2 / 2 * np.vdot(flat, flat)
            odds /= total
            odds[rows, labels] -= 1.0
            gradient = x.T @ odds + l2 * own
            return value / count, gradient.ravel() / count

        options = dict(maxiter=_MOST_STEPS, maxfun=2 * _MOST_STEPS, gtol=_TOLERANCE, ftol=0.0, maxcor=20)
        solved = scipy.optimize.minimize(loss, weights.ravel(), jac=True, method="L-BFGS-B", options=options)
        steepest = np.abs(solved.jac).max()
        if not steepest <= 100 * _TOLERANCE:  # a line search that ends in float64's last digits has converged too
            raise ArithmeticError(f"logistic regression at l2 = {l2:g} did not converge: {solved.message}")
        weights = solved.x.reshape(weights.shape)
        found[l2] = weights
    return found
