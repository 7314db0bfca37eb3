"""Levels of chance, counted by hand."""

import math

import numpy as np
import pytest

from mae_pp_jax.evaluation import chance


def test_the_commonest_class_and_equal_odds():
    found = chance.of_classes(4, {"test": np.array([2, 0, 2, 2, -1, 1])})
    assert found == {"train/loss": math.log(4), "test/loss": math.log(4), "test/accuracy": 3 / 5}


def test_several_right_classes_and_a_choice_among_some():
    """Equal odds give an image with two right classes of four the loss log 4/2; class 1 is right for two of three."""
    right = np.array([[1, -1], [1, 3], [2, -1], [-1, -1]])
    found = chance.of_classes(10, {"real": right, "part": right[:1, 0]}, {"real": 4})
    assert found["real/accuracy"] == 2 / 3 and found["part/loss"] == math.log(10)
    assert found["real/loss"] == pytest.approx((2 * math.log(4) + math.log(2)) / 3)


def test_the_commonest_hashtag_among_tagged_records():
    tags = [np.array(ids, np.int32) for ids in ([0, 2], [2], [], [1, 2], [0])]
    found = chance.of_hashtags(3, {"train": tags, "test": tags[:1]})
    assert found["train/tag_precision"] == 3 / 4 and found["test/tag_precision"] == 1
    assert found["train/loss"] == found["test/loss"] == pytest.approx(math.log(3))


def test_sets_without_labels_or_hashtags():
    assert chance.of_classes(4, {"test": np.array([-1, -1])})["test/accuracy"] == 0
    assert chance.of_hashtags(4, {"test": [np.array([], np.int32)]})["test/tag_precision"] == 0
