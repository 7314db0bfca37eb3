"""Folders of images as a source: ROOT/CLASS/* or ROOT/SPLIT/CLASS/*."""

import collections
import functools
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import fields, tree

log = logging.getLogger(__name__)

_EVAL_NAMES = ("test", "val", "validation")  # what people call the split to evaluate on
_WHOLE = "all"  # both parts of a folder without splits; TFDS's word
_NAMED = 3  # files that are no pictures, in the log


class FolderSource:
    """A split of a folder of images; see `fields.Source`.

    With sub-folders `train` and `test`, `val` or `validation` (or words for these, such as `Training` and `valid`), each
    a folder of class folders, these are the splits, and asking for `test` finds any of the last three. Otherwise the sub-folders of ROOT are the classes, and
    `eval_fraction` of each class is held out: the files whose names have the smallest hash, so that the choice is the
    same on every machine; the split `all` is the whole of such a folder, as of a dataset to evaluate on. Folders within
    classes are read and links followed; other files are told in the log.

    Args:
      root: the folder.
      split: the split to open.
      train_split: what the training part is called if ROOT has no splits of its own; the held-out part is called
        `test`, `val` or `validation`.
      eval_fraction: share of each class held out if ROOT has no splits of its own.
    """

    def __init__(self, root: pathlib.Path, split: str, train_split: str, eval_fraction: float):
        self._root, self._split = root, split
        try:
            splits = tree.split_folders(str(root))
            files = _own_split(root, split, splits) if splits else _held_out(root, split, train_split, eval_fraction)
            sized = [(n, os.path.getsize(root / n), label) for label, found in enumerate(files.values()) for n in found]
        except OSError as error:
            raise UserError(f"data.name: cannot read {error.filename}: {error.strerror}") from error
        self.fields = {"image": fields.Image(), "label": fields.Label(tuple(files))}
        self._files = sized
        folders = [found[0].split("/")[1 if splits else 0] for found in files.values()]
        self.fingerprint = hashlib.sha256(json.dumps([folders, sized]).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict:
        name, _, label = self._files[index]
        try:
            data = (self._root / name).read_bytes()
        except OSError as error:
            raise UserError(f"data.name: cannot read {self.describe(index)}: {error.strerror}") from error
        return {"image": data, "label": label}

    def column(self, name: str) -> Iterator:
        if name == "label":
            return (label for _, _, label in self._files)
        return (self[index][name] for index in range(len(self)))

    def describe(self, index: int) -> str:
        return tree.legible(str(self._root / self._files[index][0]))


def _own_split(root: pathlib.Path, split: str, splits: dict[str, str]) -> dict[str, list[str]]:
    """Class → its files (names relative to root) in a split that has a folder of its own; `splits`: folder → split."""
    folders = {split: folder for folder, split in splits.items()}
    aliases = _EVAL_NAMES if split == "test" else (split,)
    name = next((folders[n] for n in aliases if n in folders), None)
    if name is None:
        raise UserError(f"data.name: {root} has no split '{split}'; it has {', '.join(folders)}")
    train, files = _classes(root, folders["train"]), _classes(root, name)
    if beside := sorted(p.name for p in root.iterdir() if p.name not in splits and not tree.is_hidden(p.name)):
        _tell(f"{root}: not read, for it is no split: {', '.join(map(tree.legible, beside[:_NAMED]))} …")
    if set(train) != set(files):
        differ = ", ".join(sorted(set(train) ^ set(files))[:5])
        both = f"{root / folders['train']} and {root / name}"
        raise UserError(f"data.name: {both} must hold the same classes; only one has {differ}")
    return {label: files[label] for label in train}


def _held_out(root: pathlib.Path, split: str, train_split: str, eval_fraction: float) -> dict[str, list[str]]:
    """Class → its files in the training or held-out part of a folder without splits."""
    if split not in (train_split, *_EVAL_NAMES, _WHOLE):
        have = f"{train_split} and {_EVAL_NAMES[0]}"
        raise UserError(
            f"data.name: {root} has no folder 'train', so its splits are {have}, not '{split}'; '{_WHOLE}' is both"
        )
    if split == _WHOLE != train_split:
        return _classes(root)
    parts = {}
    for name, files in _classes(root).items():
        if len(files) < 2:
            raise UserError(f"data.name: class {root / name} has one image; two are needed, to train and to evaluate")
        ranked = sorted(files, key=lambda file: hashlib.sha256(file.encode("utf-8", "surrogateescape")).digest())
        held_out = min(max(round(len(files) * eval_fraction), 1), len(files) - 1)
        parts[name] = sorted(ranked[held_out:] if split == train_split else ranked[:held_out])
    return parts


def _classes(root: pathlib.Path, split: str = "") -> dict[str, list[str]]:
    """Class → names of its images relative to root, sorted; says in the log what else is there."""
    folder = root / split
    classes, others = tree.classes(str(root), split)
    loops = {name for name, reason in others if reason == tree.LOOP}
    for entry in sorted(folder.iterdir()):
        if str(entry.relative_to(root)) in loops:
            continue
        if entry.is_dir() and not tree.is_hidden(entry.name) and tree.class_name(entry.name) not in classes:
            has = f"has no image ({' '.join(tree.EXTENSIONS)})"
            raise UserError(f"data.name: {tree.legible(str(entry))} {has}; add some or remove it")
    if not classes:
        raise UserError(
            f"data.name: {folder} has no class folders; images must be in {folder}/CLASS/ ({' '.join(tree.EXTENSIONS)})"
        )
    if others:
        reasons = collections.Counter(reason for _, reason in others)
        counts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
        _tell(f"{folder}: not read: {counts}: {', '.join(tree.legible(name) for name, _ in others[:_NAMED])} …")
    return classes


@functools.cache
def _tell(line: str) -> None:
    """Logs a line once: the splits of a folder are opened one after another."""
    log.warning("data: %s", line)
