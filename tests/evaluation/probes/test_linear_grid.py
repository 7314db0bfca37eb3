"""Heads of a grid of settings: trained as SGD is written, each as if it were alone; and the part that is held out."""

import numpy as np
import pytest

from mae_pp_jax.core import schedule
from mae_pp_jax.data import orders
from mae_pp_jax.evaluation.probes import holdout, linear_grid
from tests.evaluation.probes.test_knn import images

TRAINING = dict(epochs=4, warmup=1, batch=32, seed=3)


def kernels(heads):
    """[heads, width, classes]"""
    groups, width, _ = heads.kernels.shape
    table = np.asarray(heads.kernels).reshape(groups, width, -1, heads.classes)
    return np.moveaxis(table, 2, 1).reshape(-1, width, heads.classes)[: heads.count]


def test_a_head_is_trained_as_sgd_is_written(monkeypatch):
    monkeypatch.setattr(linear_grid, "BLOCK_BYTES", 5 * 32 * 12 * 4)  # five steps at a time
    features, labels = images(100)
    rate, decay = 0.8, 0.05
    heads = linear_grid.train(features, labels, 7, [(rate, decay)], **TRAINING)
    x = features.astype(np.float64)
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
    kernel = kernels(linear_grid.train(features, labels, 7, [(0.0, 0.0)], **TRAINING))[0].astype(np.float64)
    assert 0.008 < kernel.std() < 0.012  # as it starts
    bias, of_kernel, of_bias = np.zeros(7), 0.0, 0.0
    total = round(4 * 100 / 32)
    speed = schedule.learning_rate(rate * 32 / 256, warmup=3, total=total)
    for step in range(total):
        rows = orders.Shuffled(100, 3).at(np.arange(step * 32, (step + 1) * 32))
        odds = np.exp(x[rows] @ kernel + bias)
        errors = (odds / odds.sum(1, keepdims=True) - np.eye(7)[labels[rows]]) / 32
        of_kernel = 0.9 * of_kernel + x[rows].T @ errors + decay * kernel
        of_bias = 0.9 * of_bias + errors.sum(0)
        kernel, bias = kernel - float(speed(step)) * of_kernel, bias - float(speed(step)) * of_bias
    np.testing.assert_allclose(kernels(heads)[0], kernel, rtol=1e-4, atol=1e-5)
    found = linear_grid.measure(heads, features, labels)
    logits = x @ kernel + bias
    likely = logits[np.arange(100), labels] - np.log(np.exp(logits).sum(1))
    np.testing.assert_allclose(found["loss"], [-likely.mean()], rtol=1e-4)
    assert found["accuracy"] == [np.mean(logits.argmax(1) == labels)]


def test_more_heads_change_nothing_of_the_others():
    """Not even one that diverges."""
    features, labels = images(100)
    few = [(0.5, 0.0), (0.1, 0.01), (1.0, 0.001)]
    many = [*few, (1e30, 1.0), *[(0.3 + i, 0.0) for i in range(8)]]
    alone = kernels(linear_grid.train(features, labels, 7, few, **TRAINING))
    heads = linear_grid.train(features, labels, 7, many, **TRAINING)
    np.testing.assert_allclose(kernels(heads)[:3], alone, atol=1e-6)
    found = linear_grid.measure(heads, features, labels)
    assert found["accuracy"].shape == (12,) and found["accuracy"][3] == 0 and np.isnan(found["loss"][3])
    assert np.isfinite(np.delete(found["loss"], 3)).all() and found["accuracy_top5"].min() == 0


def test_the_same_number_of_classes_is_held_out_everywhere():
    labels = np.repeat([0, 1, 2, 3], [40, 20, 2, 1])
    fit, held = holdout.stratified(labels, 0.1, 5)
    assert np.bincount(labels[held], minlength=4).tolist() == [4, 2, 1, 0]
    assert sorted([*fit, *held]) == list(range(63))
    other = holdout.stratified(labels, 0.1, 6)[1]
    assert other.tolist() != held.tolist() == holdout.stratified(labels, 0.1, 5)[1].tolist()
    with pytest.raises(ValueError, match="no class has two images"):
        holdout.stratified(np.arange(5), 0.1, 0)
