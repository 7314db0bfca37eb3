"""Several datasets as one source, mixed by weight.

They are mixed by index, before anything is read: 35 datasets cost one pool of readers and one queue, not 35.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import fields, orders

_NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?"


def parse(name: str) -> dict[str, float] | None:
    """Dataset → weight, if a name is that of a mixture (`imagenet2012=0.7,/photos=0.3`), else None.

    Raises:
      UserError: a part has no weight, one that is not above 0, or one so small that it would never be read; or a
        dataset stands twice.
    """
    if "=" not in name:
        return None
    parts = {}
    for text in name.split(","):
        part, _, weight = text.strip().rpartition("=")
        number = float(weight) if re.fullmatch(_NUMBER, weight) else 0.0
        if not part or not 0 < number < math.inf:
            raise UserError(f"data.name: '{text}' in a mixture must be NAME=WEIGHT with a weight above 0, such as 0.3")
        if part in parts:
            raise UserError(f"data.name: {part} is named twice in the mixture; give it one weight")
        parts[part] = number
    total = sum(parts.values())
    if not total < math.inf:
        raise UserError(f"data.name: the weights of '{name}' are too large; only their ratios count")
    for (part, weight), share in zip(parts.items(), orders.shares(list(parts.values()))):
        if not share:
            least = (total - weight) / (orders.MIXED_AT_ONCE - 1)  # one of these positions
            raise UserError(
                f"data.name: with the weight {weight:g} of a sum of {total:g}, {part} would never be read; give it at "
                f"least {least * 1.01:.2g}, or leave it out"
            )
    return parts


class Renumbered(fields.Wrapper):
    """A source with the numbers of some fields standing for other lists of names; what is not in these is left out.

    A record whose class is not in the list has label -1.

    Args:
      source: the other source.
      names: field → the names that its numbers stand for from here on; a field without any is dropped.
    """

    def __init__(self, source: fields.Source, names: Mapping[str, Sequence[str]]):
        identity = json.dumps([source.fingerprint, list(names.get("label", ())), list(names.get("hashtags", ()))])
        super().__init__(source, fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16])
        self._numbers = {}
        for name in self.fields.keys() & names.keys():
            field = self.fields.pop(name)
            if names[name] and fields.names(source, name):
                self.fields[name] = dataclasses.replace(field, names=tuple(names[name]))
                self._numbers[name] = _numbers(field.names, names[name])

    def __getitem__(self, index: int) -> dict:
        record = self._source[index]
        return {name: self._renumbered(name, record[name]) for name in self.fields}

    def column(self, name: str) -> Iterator:
        return (self._renumbered(name, value) for value in self._source.column(name))

    def _renumbered(self, name: str, value):
        if name not in self._numbers:
            return value
        numbers = self._numbers[name][value]  # -1, unknown, takes the last entry, which is -1
        return numbers[numbers >= 0] if isinstance(value, np.ndarray) else int(numbers)


class Mixture:
    """The records of several sources one after another; `orders.Mixed` says how often each comes.

    It has the fields that every part has. Names, such as those of classes and hashtags, are those of all parts.

    Args:
      parts: the sources.
      weights: of each.

    Attributes:
      parts: the sources, with the fields of the mixture, numbered as in it.
      weights: of each.
    """

    def __init__(self, parts: Sequence[fields.Source], weights: Sequence[float]):
        self.weights = tuple(weights)
        kinds = [{name: type(field) for name, field in part.fields.items()} for part in parts]
        common = {name for name, kind in kinds[0].items() if all(other.get(name) is kind for other in kinds)}
        named = {name: _union([fields.names(part, name) for part in parts]) for part in parts for name in part.fields}
        renamed = {name: names for name, names in named.items() if names or name not in common}
        self.parts = [Renumbered(part, renamed) for part in parts]
        self.fields = self.parts[0].fields
        self._ends = np.cumsum([len(part) for part in parts])
        identity = json.dumps([[part.fingerprint for part in self.parts], self.weights])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict:
        part, within = self._find(index)
        return part[within]

    def column(self, name: str) -> Iterator:
        return itertools.chain.from_iterable(part.column(name) for part in self.parts)

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
