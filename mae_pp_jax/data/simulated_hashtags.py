"""Simulated hashtags: noisy tags of several kinds for any labelled dataset, by a documented and seeded process.

Hashtags that people put under their photos name the subject in several ways, mention its properties, are often about
something else and are often absent. `simulate` reproduces these properties with rates that are stated in `Rates`, so
that learning from hashtags can be shown on a public labelled dataset. It is no model of any real platform's tags.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mae_pp_jax.data import text

# Forms in which a class is tagged; the first is the canonical one.
_FORMS = ("{}", "{}s", "my{}", "{}oftheday")


@dataclasses.dataclass(frozen=True)
class Rates:
    """How often each thing happens to an image. The defaults give about 3 tags per image."""

    untagged: float = 0.04  # the image has no tag at all
    wrong: float = 0.15  # the poster names another class (uniform), in the canonical tag and its synonyms alike
    missing: float = 0.25  # the canonical tag of the class named is left out
    synonym: float = 0.2  # each synonym of the class named is present
    attribute: float = 0.3  # each attribute of the true class is present
    wrong_attribute: float = 0.1  # one attribute that the true class does not have is added
    junk: float = 0.8  # mean number of tags unrelated to the image (Poisson)
    junk_tags: int = 100  # size of the vocabulary of unrelated tags
    junk_exponent: float = 1.0  # the r-th most common unrelated tag has probability proportional to r^-exponent


def simulate(
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    seed: int,
    attributes: Mapping[str, Sequence[int]] | None = None,
    rates: Rates = Rates(),
) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Draws hashtags for labelled images.

    With the default rates: 4% of the images are left without a tag (and some more happen to get none); of the others
    15% are tagged as another class, uniformly drawn; the canonical tag of the class named is left out in 25% and each
    of its 3 synonyms present in 20%; each attribute of the true class is present in 30%, and in 10% one attribute is
    added that is wrong; the number of unrelated tags is Poisson with mean 0.8, drawn from 100 by a Zipf law of
    exponent 1.

    Args:
      labels: int [records], the true classes; an image whose class is unknown (-1) gets no tag.
      class_names: name of each class.
      seed: of the draws; the vocabulary does not depend on it.
      attributes: attribute tag → the classes that have it. By default classes fall into about √classes groups of
        neighbours by index (`groupN`) and into as many of equal remainder (`kindN`).
      rates: how often each thing happens.

    Returns:
      The sorted tag ids of each image (int32, without repeats), and the vocabulary: canonical tags in the order of
      the classes, then synonyms, attributes and unrelated tags.
    """
    labels = np.asarray(labels, np.int64)
    classes, records = len(class_names), len(labels)
    attributes = _index_attributes(classes) if attributes is None else attributes
    vocabulary = (
        *(form.format(tag) for form in _FORMS for tag in _tags(class_names)),
        *attributes,
        *(f"junk{i}" for i in range(rates.junk_tags)),
    )
    first_attribute = len(_FORMS) * classes
    first_junk = first_attribute + len(attributes)
    has = np.zeros((classes, len(attributes)), bool)  # [classes, attributes]
    for column, members in enumerate(attributes.values()):
        has[list(members), column] = True

    rng = np.random.default_rng(seed)
    other = (labels + rng.integers(1, max(classes, 2), records)) % classes
    named = np.where(rng.random(records) < rates.wrong, other, labels)
    forms = rng.random((records, len(_FORMS))) < np.array([1 - rates.missing] + [rates.synonym] * (len(_FORMS) - 1))
    wrong_attribute = rng.random(records) < rates.wrong_attribute
    untagged = (rng.random(records) < rates.untagged) | (labels < 0)  # of an unknown class nothing can be said
    junk_count = rng.poisson(rates.junk, records)
    weights = np.arange(1, rates.junk_tags + 1) ** -rates.junk_exponent
    junk_ends = np.cumsum(junk_count)
    junk = rng.choice(rates.junk_tags, size=int(junk_count.sum()), p=weights / weights.sum())

    tags = []
    for i in range(records):
        mine, lacked = np.flatnonzero(has[labels[i]]), np.flatnonzero(~has[labels[i]])
        kept = mine[rng.random(len(mine)) < rates.attribute]
        if wrong_attribute[i] and len(lacked):
            kept = np.append(kept, rng.choice(lacked))
        ids = np.concatenate(
            [
                np.flatnonzero(forms[i]) * classes + named[i],
                first_attribute + kept,
                first_junk + junk[junk_ends[i] - junk_count[i] : junk_ends[i]],
            ]
        )
        tags.append(np.unique(ids[:0] if untagged[i] else ids).astype(np.int32))
    return tags, vocabulary


def _index_attributes(classes: int) -> dict[str, list[int]]:
    groups = max(1, math.isqrt(classes))
    width = -(-classes // groups)
    neighbours = {f"group{g}": list(range(g * width, min((g + 1) * width, classes))) for g in range(groups)}
    return neighbours | {f"kind{g}": list(range(g, classes, groups)) for g in range(groups)}


def _tags(class_names: Sequence[str]) -> list[str]:
    """Class names as people would write them after a #; and the class's number where two are the same, or empty."""
    tags = [text.glue(name) for name in class_names]
    often = collections.Counter(tags)
    return [tag if tag and often[tag] == 1 else f"{tag}class{i}" for i, tag in enumerate(tags)]
