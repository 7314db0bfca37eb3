"""RandAugment against what timm makes of the same image and draws; live, at more sizes and levels, in `make parity`."""

import collections
import math

import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import randaugment
from tests.parity import augmentations

POLICY = "rand-m9-mstd0.5-inc1"


@pytest.mark.parametrize("name", randaugment.NAMES)
def test_operations_are_those_of_timm(name):
    stored, found = np.load(augmentations.STORED), 0
    for case in (case for case in augmentations.cases() if case[0] == name):
        expected = stored["/".join(map(str, case))]
        apart = np.abs(augmentations.ours(stored["image"], *case).astype(int) - expected)
        most, mean = augmentations.limit(name, case[-1])
        assert apart.max() <= most and apart.mean() <= mean, (case, apart.max(), apart.mean())
        found += 1
    assert found


def test_the_order_of_operations_is_that_of_timm():
    assert len(randaugment.NAMES) == 15
    assert randaugment.NAMES[:5] == ("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize")


def test_a_policy_draws_operations_magnitudes_and_signs_as_timm_does(monkeypatch):
    applied = []

    def note(name, image, argument, *, cubic, fill):
        applied.append((name, argument, cubic))
        return image

    monkeypatch.setattr(randaugment, "apply", note)
    policy, image = randaugment.parse(POLICY), np.zeros((4, 4, 3), np.uint8)
    numbers = np.random.default_rng(0).random((6000, policy.draws))
    for draws in numbers:
        policy(image, draws, augmentations.FILL)
    assert len(applied) == pytest.approx(6000, rel=0.05)  # two operations, each with probability one half
    counts = collections.Counter(name for name, _, _ in applied)
    assert all(counts[name] == pytest.approx(400, rel=0.2) for name in randaugment.NAMES)
    turned = np.array([argument for name, argument, _ in applied if name == "Rotate"])
    assert 0.4 < np.mean(turned > 0) < 0.6 and np.abs(turned).max() == 30  # magnitudes are cut at 10
    levels = np.abs(turned) / 3
    assert np.median(levels) == pytest.approx(9, abs=0.1) and np.mean(levels == 10) == pytest.approx(0.023, abs=0.02)
    assert np.std(levels[levels < 10]) == pytest.approx(0.48, abs=0.08)
    assert 0.4 < np.mean([cubic for _, _, cubic in applied]) < 0.6


def test_a_policy_may_say_all_that_timm_s_may():
    assert randaugment.parse("rand") == randaugment.RandAugment()
    assert randaugment.parse("rand-n3-p0.25-m12-mmax15-mstd101") == randaugment.RandAugment(
        12.0, 3, 0.25, math.inf, 15.0
    )
    assert randaugment.parse("rand-inc1-mstd0.5-m9") == randaugment.parse(POLICY)
    assert randaugment.parse("rand-m9-mstd101").level(0.5) == 4.5


@pytest.mark.parametrize(
    "text, why",
    [
        ("augmix-m3", "begins with 'rand'"),
        ("rand-m9-", "'' is no part"),
        ("rand-m9-std0.5", "'std0.5' is no part"),
        ("rand-m", "'m' is no part"),
        ("rand-m-9", "'m' is no part"),
        ("rand-m9-tweights", "'tweights' is no part"),
        ("rand-m9.5", "whole number"),
        ("rand-m9-m8", "twice"),
        ("rand-m9-inc0", "inc is 1, or left out"),
        ("rand-p1.5", "probability"),
        ("rand-n0", "n is 1 or more"),
    ],
)
def test_a_text_that_is_no_policy_is_refused(text, why):
    with pytest.raises(UserError, match=r"data\.randaugment: .*" + why):
        randaugment.parse(text)


def test_every_operation_takes_images_of_any_size_and_leaves_them_alone():
    policy = randaugment.parse(POLICY)
    for height, width in [(1, 1), (2, 9), (8, 8), (33, 20)]:
        image = augmentations.picture(height, width, 1)[:, ::-1]  # a view, as crops are
        before = image.copy()
        for name in randaugment.NAMES:
            for level, negative, cubic in [(9.0, False, True), (10.0, True, False), (0.0, False, False)]:
                out = randaugment.apply(name, image, policy.argument(name, level, negative), cubic=cubic)
                assert out.shape == image.shape and out.dtype == np.uint8
            randaugment.apply(name, image, randaugment.parse("rand-mmax30").argument(name, 30.0, True))
        np.testing.assert_array_equal(image, before)
