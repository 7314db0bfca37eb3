"""Several datasets as one source, mixed by weight.

They are mixed by index, before anything is read: 35 datasets cost one pool of readers and one queue, not 35.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence

import numpy as np

from mae_pp_jax.core.errors import UserError


def parse(name: str) -> dict[str, float] | None:
    """Dataset → weight, if a name is that of a mixture (`imagenet2012=0.7,/photos=0.3`), else None.

    Raises:
      UserError: a part has no weight or one that is not above 0, or a dataset stands twice.
    """
    if "=" not in name:
        return None
    parts = {}
    for text in name.split(","):
        part, _, weight = text.strip().rpartition("=")
        if not part or not re.fullmatch(r"[0-9.]+(e-?[0-9]+)?", weight) or float(weight) <= 0:
            raise UserError(f"data.name: '{text}' in a mixture must be NAME=WEIGHT with a weight above 0")
        if part in parts:
            raise UserError(f"data.name: {part} stands twice in the mixture; give it one weight")
        parts[part] = float(weight)
    return parts


class Renumbered:
    """A source with its classes and hashtags numbered as in other lists of names; those not in them are left out.

    A record whose class is not in the list has label -1. An empty list drops the field.
    """

    has_tags = False

    def __init__(self, source, class_names: Sequence[str], hashtag_names: Sequence[str]):
        self._source = source
        self.class_names, self.hashtag_names = tuple(class_names), tuple(hashtag_names)
        self._classes = _numbers(source.class_names, class_names)
        self._hashtags = _numbers(source.hashtag_names, hashtag_names)
        parts = json.dumps([source.fingerprint, class_names, hashtag_names])
        self.fingerprint = hashlib.sha256(parts.encode()).hexdigest()[:16]
        self.describe = source.describe

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        record = self._source[index]
        out = {"image": record["image"]}
        if self.class_names:
            out["label"] = int(self._classes[record["label"]])  # -1, unknown, takes the last entry, which is -1
        if self.hashtag_names:
            out["hashtags"] = self._known(record["hashtags"])
        return out

    def labels(self) -> np.ndarray:
        return self._classes[self._source.labels()]

    def hashtags(self) -> Iterator[np.ndarray]:
        return map(self._known, self._source.hashtags())

    def _known(self, hashtags: np.ndarray) -> np.ndarray:
        numbers = self._hashtags[hashtags]
        return numbers[numbers >= 0]


class Mixture:
    """The records of several sources one after another; `orders.Mixed` says how often each comes.

    Classes and hashtags are those of all parts, by name; a mixture has them only if every part has.

    Args:
      parts: the sources.
      weights: of each.

    Attributes:
      parts: the sources, classes and hashtags numbered as in the mixture.
      weights: of each.
    """

    has_tags = False

    def __init__(self, parts: Sequence, weights: Sequence[float]):
        self.weights = tuple(weights)
        self.class_names = _union([part.class_names for part in parts])
        self.hashtag_names = _union([part.hashtag_names for part in parts])
        self.parts = [Renumbered(part, self.class_names, self.hashtag_names) for part in parts]
        self._ends = np.cumsum([len(part) for part in parts])
        identity = json.dumps([[part.fingerprint for part in self.parts], self.weights])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict:
        part, within = self._find(index)
        return part[within]

    def labels(self) -> np.ndarray:
        return np.concatenate([part.labels() for part in self.parts])

    def hashtags(self) -> Iterator[np.ndarray]:
        return itertools.chain.from_iterable(part.hashtags() for part in self.parts)

    def describe(self, index: int) -> str:
        part, within = self._find(index)
        return part.describe(within)

    def _find(self, index: int):
        """(part, index within it)."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[number], index - int(self._ends[number - 1] if number else 0)


def _union(lists: list[tuple[str, ...]]) -> tuple[str, ...]:
    if not all(lists):
        return ()
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _numbers(names: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """The place of each name in `target`, -1 for those not there and, as the last entry, for none: int32."""
    places = {name: place for place, name in enumerate(target)}
    return np.array([*(places.get(name, -1) for name in names), -1], np.int32)
