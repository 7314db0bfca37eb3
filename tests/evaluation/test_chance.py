"""Levels of chance, counted by hand."""

import math

import numpy as np
import pytest

from mae_pp_jax.evaluation import chance


def test_the_commonest_class_and_equal_odds():
    found = chance.of_classes(4, {"test": np.array([2, 0, 2, 2, -1, 1])})
    assert found == {"train/loss": math.log(4), "test/loss": math.log(4), "test/accuracy": 3 / 5}


def test_the_commonest_hashtag_among_tagged_records():
    tags = [np.array(ids, np.int32) for ids in ([0, 2], [2], [], [1, 2], [0])]
    found = chance.of_hashtags(3, {"train": tags, "test": tags[:1]})
    assert found["train/tag_precision"] == 3 / 4 and found["test/tag_precision"] == 1
    assert found["train/loss"] == found["test/loss"] == pytest.approx(math.log(3))


def test_sets_without_labels_or_hashtags():
    assert chance.of_classes(4, {"test": np.array([-1, -1])})["test/accuracy"] == 0
    assert chance.of_hashtags(4, {"test": [np.array([], np.int32)]})["test/tag_precision"] == 0
