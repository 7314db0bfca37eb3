"""Ridge and logistic regression against plain solutions of the same problems."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mae_pp_jax.evaluation.probes import logistic, ridge, scoring
from tests.evaluation.probes.test_knn import images


@pytest.mark.parametrize("count, width", [(60, 12), (20, 33)])
def test_ridge_solves_the_normal_equations(count, width):
    """Both with more images than features and with fewer, for several penalties from one decomposition."""
    features, labels = images(count, classes=4, width=width)
    features[:, 0] = 3.0  # a feature that never changes
    found = ridge.fit(scoring.Standard(features)(features), labels, 4, (1.0, 1024.0))
    x = features.astype(np.float64)
    x = np.pad((x - x.mean(0)) / (x.std(0) + 1e-5), ((0, 0), (0, 1)), constant_values=100.0)
    targets = 2.0 * np.eye(4)[labels] - 1.0
    for l2, weights in found.items():
        wanted = np.linalg.solve(x.T @ x + l2 * np.eye(width + 1), x.T @ targets)
        np.testing.assert_allclose(weights, wanted, rtol=1e-7, atol=1e-10)


def test_logistic_regression_is_that_of_scikit_learn():
    features, labels = images(80, classes=5)
    x = scoring.Standard(features)(features)
    for l2, weights in logistic.fit(x, labels, 5, (0.03, 1.0, 30.0)).items():
        theirs = LogisticRegression(C=1 / l2, tol=1e-9, max_iter=10_000).fit(x, labels)
        largest = np.abs(theirs.coef_).max()
        np.testing.assert_allclose(weights[:-1].T, theirs.coef_, atol=1e-3 * largest, err_msg=str(l2))
        centred = weights[-1] - weights[-1].mean()  # the same for all classes changes no probability
        np.testing.assert_allclose(centred, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-3 * largest)


def test_a_penalty_gives_the_same_weights_whatever_others_there_are():
    features, labels = images(40, classes=5)
    x = scoring.Standard(features)(features)
    alone, among = logistic.fit(x, labels, 5, (0.1,))[0.1], logistic.fit(x, labels, 5, (10.0, 1.0, 0.1, 0.01))[0.1]
    np.testing.assert_allclose(among, alone, atol=1e-3 * np.abs(alone).max())


def test_labels_that_can_be_told_apart_converge():
    """One image of each class: without the penalty the weights would grow for ever."""
    x, labels = np.eye(6), np.arange(6)
    weights = logistic.fit(x, labels, 6, logistic.PENALTIES)[0.001]
    found = scoring.accuracy(lambda x: logistic.with_one(x) @ weights, x, labels)
    assert found == {"accuracy": 1, "accuracy_top5": 1}


def test_accuracy_is_counted_over_blocks(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 4)
    scores = np.eye(6)[[0, 1, 2, 3, 4, 5, 0, 0, 0, 5]]
    found = scoring.accuracy(lambda x: x, scores, np.array([0, 1, 2, 3, 4, 5, 1, 5, 5, 0]))
    assert found == pytest.approx({"accuracy": 0.6, "accuracy_top5": 0.8})  # class 5 ranks last where all are equal
