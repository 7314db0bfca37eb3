"""Nearest neighbours against their definition, written out image by image."""

import numpy as np
import pytest

from mae_pp_jax.evaluation import nearest
from mae_pp_jax.evaluation.probes import knn


def images(count, classes=7, width=12, seed=0):
    """Features around a centre for each class, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    return (centres[labels] + rng.normal(size=(count, width))).astype(np.float32) * 5, labels


def by_hand(train, labels, test, test_labels, classes, k, temperature):
    train, test = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (train, test))
    top1 = top5 = 0
    for x, y in zip(test, test_labels, strict=True):
        similar = train @ x
        votes = np.zeros(classes)
        for near in np.argsort(-similar, kind="stable")[:k]:
            votes[labels[near]] += np.exp(similar[near] / temperature)
        ranking = np.argsort(-votes, kind="stable")
        top1, top5 = top1 + (ranking[0] == y), top5 + (y in ranking[:5])
    return {"accuracy": top1 / len(test), "accuracy_top5": top5 / len(test)}


@pytest.mark.parametrize("blocks", [(16384, 1024), (64, 32)])
def test_votes_are_those_of_the_definition(blocks, monkeypatch):
    """Also where images are compared in many blocks, the last of them not full."""
    monkeypatch.setattr(nearest, "BASE_BLOCK", blocks[0])
    monkeypatch.setattr(nearest, "QUERY_BLOCK", blocks[1])
    monkeypatch.setattr(knn, "TEST_BLOCK", blocks[1])
    (train, labels), (test, test_labels) = images(150), images(70, seed=1)
    found = knn.measure(train, labels, test, test_labels, classes=7, ks=(1, 10, 100), temperature=0.07)
    for k, own in found.items():
        assert own == pytest.approx(by_hand(train, labels, test, test_labels, 7, k, 0.07)), k
    assert 0.3 < found[10]["accuracy"] < 1


def test_an_image_that_is_not_finite_is_never_a_hit_and_never_votes():
    (train, labels), (test, test_labels) = images(60), images(20, seed=1)
    expected = knn.measure(train, labels, test, test_labels, classes=7, ks=(5,))[5]
    damaged = np.concatenate([np.full((3, 12), np.nan, np.float32), train])
    found = knn.measure(damaged, np.r_[0, 1, 2, labels], test, test_labels, classes=7, ks=(5,))[5]
    assert found == pytest.approx(expected) and expected["accuracy"] > 0.3
    test = np.full_like(test, np.inf)
    assert knn.measure(train, labels, test, test_labels * 0, classes=7, ks=(5,))[5]["accuracy"] == 0


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(ValueError, match="20 neighbours of 5"):
        knn.measure(*images(5), *images(5), classes=7, ks=(20,))
