"""Images for which several classes are right, and sets that have only some of a model's classes.

ImageNet-ReaL (Beyer et al. 2020, Are we done with ImageNet?) gives each validation image a set of classes; an answer is
right if it is in the set, and images whose set is empty do not count. A class of ObjectNet (Barbu et al. 2019) stands
for one or more of ImageNet's.
"""

import json
import logging
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import class_names, fields
from mae_pp_jax.data.source import Subset, digest

log = logging.getLogger(__name__)


class Judged(fields.Wrapper):
    """An evaluation set with the classes that are right for each record, those that may be answered, or both.

    Args:
      source: the records.
      names: of the outputs of the model.
      answers: the outputs that are right for each record, int32 [records, most], padded with -1; they take the place of
        its label. None: its label.
      allowed: the outputs among which the model chooses, int32 [classes]; None: all.
    """

    def __init__(
        self,
        source: fields.Source,
        names: Sequence[str],
        answers: np.ndarray | None = None,
        allowed: np.ndarray | None = None,
    ):
        self._constant = {} if allowed is None else {"allowed": allowed}
        self._answers = answers
        arrays = [*self._constant.values(), *(() if answers is None else (answers,))]
        known = [json.dumps(names), *(array.tobytes() for array in arrays)]
        super().__init__(source, fingerprint=digest(source.fingerprint, *known))
        added = (*self._constant, *(() if answers is None else ("answers",)))
        self.fields |= {name: fields.Ids(tuple(names)) for name in added}
        if answers is not None:
            self.fields.pop("label", None)

    def __getitem__(self, index: int) -> dict:
        record = self._source[index] | self._constant
        if self._answers is not None:
            record["answers"] = self._answers[index]
        return {name: record[name] for name in self.fields}

    def column(self, name: str) -> Iterator:
        if name in self._constant:
            return (self._constant[name] for _ in range(len(self)))
        return iter(self._answers) if name == "answers" and self._answers is not None else super().column(name)


def padded(ids: Sequence[np.ndarray]) -> np.ndarray:
    """Lists of ids as int32 [lists, longest], padded with -1."""
    out = np.full((len(ids), max(map(len, ids), default=0)), -1, np.int32)
    for row, own in zip(out, ids):
        row[: len(own)] = own
    return out


def read(
    source: fields.Source, labels: str, outputs: class_names.Outputs, by: str, key: str, exact: bool
) -> tuple[fields.Source, list[np.ndarray]]:
    """The records for which some class is right, and the outputs that are right for each, int32 [n].

    Args:
      source: the records.
      labels: a field of classes of the source, or a JSON file: an object, file name → names of classes; or a list, the
        i-th entry for the file whose name ends in the number i + 1, as ILSVRC2012_val_00000001.JPEG. Classes may be
        numbers in ImageNet's usual order, as in real.json.
      outputs: what the outputs of the model stand for.
      by: who says so, for messages.
      key: names the file in messages.
      exact: whether a list must have as many entries as there are records.

    Raises:
      UserError: the file cannot be read, has another length, lacks an image, or names no class.
    """
    if names := fields.names(source, labels):
        sets = [[names[i] for i in np.atleast_1d(ids)] for ids in source.column(labels)]
        place = f"{key}: field {labels}"
    else:
        content, place = class_names.read_json(labels, key), f"{key}: {labels}"
        sets = _by_file(source, content, place, exact)
    places = _Places(outputs, by, place)
    found = [places.of(own) for own in sets]
    kept = np.flatnonzero([len(own) > 0 for own in found])
    if not len(kept):
        raise UserError(f"{place}: no image of the set has a class that {by} has")
    if len(kept) < len(found):
        left = f"{len(found) - len(kept):,}"
        log.info("%s: %s of %s images have no class there and are left out", place, left, f"{len(found):,}")
    return Subset(source, kept), [found[i] for i in kept]


def _by_file(source: fields.Source, content, place: str, exact: bool) -> list[list]:
    """The entry of a file of labels for each record."""
    listed, records = isinstance(content, list), len(source)
    entries = content if listed else content.values() if isinstance(content, dict) else ()
    if not entries or not all(isinstance(entry, list) for entry in entries):
        raise UserError(f"{place} must hold a list of lists of classes, or an object, file name → list of classes")
    if listed and (len(content) < records or exact and len(content) > records):
        raise UserError(
            f"{place} has labels of {len(content):,} images, and the set has {records:,}; for a part of the images give "
            "an object, file name → list of classes"
        )
    paths = source.column("file_name") if "file_name" in source.fields else map(source.describe, range(records))
    files = [pathlib.PurePath(path).name for path in paths]
    if listed:
        content = {file: content[n - 1] for file in set(files) if (n := _number(file)) and n <= len(content)}
    if unmatched := [file for file in files if file not in content]:
        what = f"no number from 1 to {len(entries):,} at the end of its name" if listed else "no entry"
        raise UserError(f"{place}: {len(unmatched):,} images are not in it, such as {unmatched[0]}: {what}")
    return [content[file] for file in files]


def _number(file: str) -> int:
    """The number at the end of a file's name, before its ending; 0 where there is none."""
    found = re.search(r"(\d+)\.\w+$", file)
    return int(found[1]) if found else 0


class _Places:
    """The outputs that the classes of label sets are: names, or numbers in ImageNet's usual order."""

    def __init__(self, outputs: class_names.Outputs, by: str, place: str):
        self._outputs, self._by, self._place = outputs, by, place
        self._found: dict = {}

    def of(self, classes: list) -> np.ndarray:
        """The outputs that a set of classes is, int32 [n]; classes of ImageNet that the model lacks are left out."""
        for one in classes:
            if not isinstance(one, (int, str)):
                raise UserError(f"{self._place}: {one} is no class; give names or numbers")
            if one not in self._found:
                self._found[one] = self._find(one)
        return np.array(sorted({place for one in classes for place in self._found[one]}), np.int32)

    def _find(self, one) -> tuple[int, ...]:
        ids = class_names.imagenet()
        if isinstance(one, int):
            if not 0 <= one < len(ids):
                raise UserError(f"{self._place}: {one} is no class; numbers are those of ImageNet, 0 to {len(ids) - 1}")
            return self._outputs.find(list(ids)[one])
        return self._outputs.find(one) if one in ids else self._outputs.find_all([one], self._place, self._by)
