"""Simulated hashtags occur at the rates stated, and are the same for the same seed."""

import numpy as np
import pytest

from mae_pp_jax.data import simulated_hashtags

CLASSES = tuple(f"Class {i}" for i in range(10))
LABELS = np.arange(30_000) % 10
# Made by the generator itself at its first version, so that a change of the draws does not pass unnoticed.
EXPECTED = [
    ["class8", "junk6"],
    ["class7s", "class7oftheday"],
    ["class2", "class2s", "junk56"],
    ["class3", "myclass3", "class3oftheday"],
]


@pytest.fixture(scope="module")
def simulated():
    return simulated_hashtags.simulate(LABELS, CLASSES, seed=1)


def _rate(hits, of=None):
    return np.mean(hits if of is None else hits[of])


def test_rates_are_those_stated(simulated):
    tags, vocabulary = simulated
    rates = simulated_hashtags.Rates()
    has = np.zeros((len(tags), len(vocabulary)), bool)
    for row, ids in zip(has, tags):
        row[ids] = True
    tagged = has.any(1)
    canonical = has[:, :10]
    right = canonical[np.arange(len(tags)), LABELS]
    shown = 1 - rates.untagged
    # An image without a tag is an untagged one, or nothing was drawn for it; each class has two attributes.
    nothing = rates.missing * (1 - rates.synonym) ** 3 * (1 - rates.attribute) ** 2 * (1 - rates.wrong_attribute)
    nothing *= np.exp(-rates.junk)
    assert _rate(~tagged) == pytest.approx(rates.untagged + shown * nothing, abs=0.005)
    assert _rate(right) == pytest.approx(shown * (1 - rates.wrong) * (1 - rates.missing), abs=0.01)
    assert _rate(canonical.any(1) & ~right) == pytest.approx(shown * rates.wrong * (1 - rates.missing), abs=0.01)
    assert canonical.sum(1).max() == 1
    synonym = has[np.arange(len(tags)), 10 + LABELS]
    assert _rate(synonym) == pytest.approx(shown * (1 - rates.wrong) * rates.synonym, abs=0.01)
    group0 = has[:, vocabulary.index("group0")]
    member = LABELS < 4
    assert _rate(group0, member) == pytest.approx(shown * rates.attribute, abs=0.015)
    assert 0 < _rate(group0, ~member) < shown * rates.wrong_attribute
    junk = has[:, -rates.junk_tags :].sum(0)
    assert junk.sum() / len(tags) == pytest.approx(shown * rates.junk, abs=0.05)
    # A Zipf law's head and tail.
    assert junk[0] > 1.7 * junk[1] and junk[0] > 20 * junk[50:].mean() and (junk > 0).all()


def test_typical_image_has_two_to_five_tags(simulated):
    counts = np.array([len(ids) for ids in simulated[0]])
    assert np.mean((counts >= 2) & (counts <= 5)) > 0.75
    assert 2.5 < counts.mean() < 3.5


def test_same_seed_same_tags_and_vocabulary_is_fixed(simulated):
    tags, vocabulary = simulated
    again, same = simulated_hashtags.simulate(LABELS, CLASSES, seed=1)
    other, still = simulated_hashtags.simulate(LABELS, CLASSES, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(tags, again))
    assert not all(np.array_equal(a, b) for a, b in zip(tags, other))
    assert vocabulary == same == still and vocabulary[:2] == ("class0", "class1")


def test_draws_stay_the_same_from_version_to_version():
    tags, vocabulary = simulated_hashtags.simulate(LABELS[:4], CLASSES, seed=0)
    assert [[vocabulary[t] for t in ids] for ids in tags] == EXPECTED


def test_given_attributes_go_to_their_classes():
    rates = simulated_hashtags.Rates(untagged=0, attribute=1, wrong_attribute=0)
    even = {"even": range(0, 10, 2)}
    tags, vocabulary = simulated_hashtags.simulate(LABELS[:50], CLASSES, seed=0, attributes=even, rates=rates)
    tag = vocabulary.index("even")
    assert [tag in ids for ids in tags] == [label % 2 == 0 for label in LABELS[:50]]


def test_images_of_an_unknown_class_get_no_tag():
    labels = np.array([0, -1, 2, -1] * 50)
    tags, _ = simulated_hashtags.simulate(labels, ["a", "b", "c"], seed=0)
    assert all(len(ids) == 0 for ids, label in zip(tags, labels, strict=True) if label < 0)
    assert all(np.all(ids >= 0) for ids in tags) and any(len(ids) for ids in tags)


def test_every_class_has_tags_of_its_own_in_any_script():
    names = ("हिन्दी", "Ice Cream", "C", "C++", "❤️", "+", "-", "①")
    _, vocabulary = simulated_hashtags.simulate(np.arange(8), names, seed=0)
    assert vocabulary[:8] == ("हिन्दी", "icecream", "cclass2", "cclass3", "❤", "class5", "class6", "1")
    assert len(set(vocabulary)) == len(vocabulary)
