"""Multinomial logistic regression with an L2 penalty by L-BFGS, for few labelled images.

It minimises sum of cross entropies + l2 / 2 · |weights|², with an intercept that is not penalised: scikit-learn's
objective with C = 1 / l2, and that of MSN (facebookresearch/msn logistic_eval.py) but for the intercept. Features have
mean 0 and deviation 1 over the labelled images, as in google-research/big_vision's few-shot evaluation: those of masked
autoencoders share large components, with which neither the penalty nor the solver would do well.

SciPy's L-BFGS-B in float64 on the host: a few labelled images make problems of milliseconds, and float32 would end the
line search before the weights are exact.
"""

from collections.abc import Sequence

import numpy as np
import scipy.optimize

from mae_pp_jax.core.errors import RunStopped

PENALTIES = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)
_TOLERANCE = 1e-6  # largest component of the gradient of the mean loss at which it has converged
_MOST_STEPS = 10_000


def fit(x: np.ndarray, labels: np.ndarray, classes: int, penalties: Sequence[float]) -> dict[float, np.ndarray]:
    """Penalty → weights, float64 [width + 1, classes], the last row for the intercept.

    Each solution starts from that of the next stronger penalty.

    Args:
      x: float64 [images, width].
      labels: int [images].
      classes: number of classes.
      penalties: values of l2, above 0.

    Raises:
      RunStopped: it did not converge.
    """
    x = with_one(x)
    count, rows, penalised = len(x), np.arange(len(x)), np.ones((x.shape[1], 1))
    penalised[-1] = 0.0
    found, weights = {}, np.zeros((x.shape[1], classes))
    for l2 in sorted(set(penalties), reverse=True):

        def loss(flat: np.ndarray, l2=l2) -> tuple[float, np.ndarray]:
            own = flat.reshape(weights.shape)
            logits = x @ own
            logits -= logits.max(1, keepdims=True)
            right = logits[rows, labels]
            odds = np.exp(logits, out=logits)
            total = odds.sum(1, keepdims=True)
            pull = l2 * penalised * own
            value = np.sum(np.log(total[:, 0]) - right) + np.vdot(pull, own) / 2
            odds /= total
            odds[rows, labels] -= 1.0
            return value / count, (x.T @ odds + pull).ravel() / count

        options = dict(maxiter=_MOST_STEPS, maxfun=2 * _MOST_STEPS, gtol=_TOLERANCE, ftol=0.0, maxcor=20)
        solved = scipy.optimize.minimize(loss, weights.ravel(), jac=True, method="L-BFGS-B", options=options)
        steepest = np.abs(solved.jac).max()
        if not steepest <= 10 * _TOLERANCE:  # a line search that ends in float64's last digits has converged too
            raise RunStopped(
                f"logistic regression at l2 = {l2:g} did not converge ({solved.message}); use larger penalties"
            )
        weights = solved.x.reshape(weights.shape)
        found[l2] = weights
    return found


def with_one(x: np.ndarray) -> np.ndarray:
    """Features [images, width] with a constant feature for the intercept, [images, width + 1]."""
    return np.pad(x, ((0, 0), (0, 1)), constant_values=1.0)
