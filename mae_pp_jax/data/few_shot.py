"""Draws of a few labelled images as text files, one name of a record per line.

Public splits of ImageNet come so: `subsets1/5imgs_class.txt` of MSN (Assran et al. 2022) has lines such as
`n01440764_10026.JPEG`.
"""

import collections
import logging
import os
from collections.abc import Iterable, Sequence

import numpy as np

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import fields

log = logging.getLogger(__name__)


def record_names(source: fields.Source, indices: Iterable[int] | None = None) -> list[str]:
    """Names of records that are the same on every machine: `file_name` of the dataset, or CLASS/FILE in a folder.

    Records of datasets that keep no names of files are named by their place, "DATASET, split SPLIT, record N".

    Args:
      source: the records.
      indices: which of them; None: all.
    """
    indices = range(len(source)) if indices is None else indices
    if isinstance(source.fields.get("file_name"), fields.Text):
        names = list(source.column("file_name"))
        return [names[index] for index in indices]
    return ["/".join(source.describe(int(index)).split("/")[-2:]) for index in indices]


def write_split(path: str | os.PathLike, source: fields.Source, indices: np.ndarray) -> None:
    """Writes the names of the records `indices` (int [chosen]) of a source, one per line."""
    with storage.writing(storage.path(path)):
        storage.make_folder(storage.path(path).parent)
    storage.write_whole(storage.path(path), text_of(source, indices))


def text_of(source: fields.Source, indices: np.ndarray) -> str:
    """The content of the file that `write_split` writes."""
    return "".join(f"{name}\n" for name in record_names(source, indices))


def read_split(path: str | os.PathLike, source: fields.Source, field: str = "config.splits_from") -> np.ndarray:
    """The records that a file names.

    A line is matched with the whole name of a record (`record_names`), then with the name of its file, with or without
    extension.

    Args:
      path: text file, one name per line.
      source: the records.
      field: what names the file, for errors.

    Returns:
      int64 [chosen], in the order of the lines.

    Raises:
      UserError: no such file, an empty one, or a name that no record or more than one has.
    """
    where = storage.path(path, field)
    if not storage.is_file(where):
        raise UserError(
            f"{field}: there is no file {where}; give a folder of split files, one name of an image per line"
        )
    lines = [line.strip() for line in storage.read_bytes(where).decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{field}: {where} names no image; give a file with one name per line")
    names = record_names(source)
    unmatched, chosen = lines, {}
    for short in (str, os.path.basename, _stem):
        known = collections.defaultdict(list)
        for index, name in enumerate(names):
            known[short(name)].append(index)
        for line in unmatched:
            if len(found := known.get(short(line), [])) > 1:
                raise UserError(
                    f"{field}: {where}: {line} is the name of {len(found)} images, such as {names[found[0]]} and "
                    f"{names[found[1]]}; write CLASS/FILE"
                )
            if found:
                chosen[line] = found[0]
        unmatched = [line for line in unmatched if line not in chosen]
    if unmatched:
        raise UserError(
            f"{field}: {where}: {len(unmatched):,} of {len(lines):,} names are no training image, such as "
            f"{unmatched[0]} (an image here is called {names[0]}); use the data that the file was made for"
        )
    indices = np.array([chosen[line] for line in lines], np.int64)
    if len(np.unique(indices)) < len(indices):
        raise UserError(f"{field}: {where} names an image twice; remove the repeats")
    return indices


def split_file(folder: str | os.PathLike, shots: int, split: int, splits: int) -> storage.Path:
    """The file of a draw in a folder: as a run writes it, or as the published ones are laid out.

    Args:
      folder: that holds `5shot_0.txt` … (WORKDIR/splits of a run), `subsets1/5imgs_class.txt` …, or for a single draw
        `5imgs_class.txt`.
      shots: images per class, in the file's name.
      split: number of the draw, from 0.
      splits: how many draws there are.

    Raises:
      UserError: the folder has none of them.
    """
    base = storage.path(folder, "config.splits_from")
    candidates = [own_name(shots, split), f"subsets{split + 1}/{shots}imgs_class.txt"]
    candidates += [f"{shots}imgs_class.txt"] * (splits == 1)
    for name in candidates:
        if storage.is_file(base / name):
            return base / name
    raise UserError(
        f"config.splits_from: {base} has no file for draw {split + 1} of {splits}, {' or '.join(candidates)}; give "
        "another folder, or set config.shots and config.splits as its files are"
    )


def own_name(shots: int, split: int) -> str:
    """The file name of a draw in the folder `splits` of a run."""
    return f"{shots}shot_{split}.txt"


def tell_small_classes(labels: np.ndarray, shots: int, names: Iterable[str]) -> None:
    """Logs how many classes have fewer than `shots` records, as all of these are drawn.

    Args:
      labels: int [records]; negative labels are unknown.
      shots: records that are drawn of each class.
      names: of the classes.
    """
    if found := _small_classes(labels, shots, names):
        small, classes, name, count = found
        log.warning(
            "config.shots: %d of %d classes have fewer than %d images and give all they have, such as %s with %d",
            *(small, classes, shots, name, count),
        )


def check_small_classes(labels: np.ndarray, shots: int, names: Iterable[str]) -> None:
    """Raises `UserError` where a class has fewer than `shots` records; arguments as `tell_small_classes`."""
    if found := _small_classes(labels, shots, names):
        small, classes, name, count = found
        fewer = f"--config.shots={count}, or " if count else ""
        raise UserError(
            f"config.shots: {shots} images per class are wanted, and {small} of {classes} classes have fewer, the smallest "
            f"is {name} with {count}; set {fewer}--config.small_classes=all, with which such classes give all they have"
        )


def _small_classes(labels: np.ndarray, shots: int, names: Iterable[str]) -> tuple[int, int, str, int] | None:
    """(classes with fewer than `shots` records, all classes, name of the smallest, its records); None: there is none."""
    names = list(names)
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    small, least = int(np.sum(counts < shots)), int(np.argmin(counts))
    return (small, len(names), names[least], int(counts[least])) if small else None


def check_classes(labels: np.ndarray, drawn: np.ndarray, names: Sequence[str], where: object) -> None:
    """Raises `UserError` unless there is a record of every class of `labels` (int [records]) among those drawn.

    Args:
      labels: of all records; negative labels are unknown.
      drawn: the records of a draw.
      names: of the classes.
      where: what says what is drawn.
    """
    missing = np.setdiff1d(labels[labels >= 0], labels[drawn])
    if len(missing):
        raise UserError(
            f"config.splits_from: {where} names no image of {len(missing)} of {len(names)} classes, such as "
            f"{names[missing[0]]}; add one of each"
        )


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


def rest(count: int, drawn: np.ndarray, wanted: int, seed: int) -> np.ndarray:
    """Draws `wanted` of `count` records that are not among `drawn`: int64 [up to wanted], sorted."""
    left = np.setdiff1d(np.arange(count), drawn)
    return np.sort(np.random.default_rng(seed).permutation(left)[:wanted])
