"""Folders of images as a source: ROOT/CLASS/* or ROOT/SPLIT/CLASS/*."""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import fields

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
_EVAL_NAMES = ("test", "val", "validation")  # what people call the split to evaluate on


class FolderSource:
    """A split of a folder of images; see `fields.Source`.

    With sub-folders `train` and `test`, `val` or `validation`, each a folder of class folders, these are the splits
    (and asking for `test` finds any of the last three). Otherwise the sub-folders of ROOT are the classes, and
    `eval_fraction` of each class is held out: the files whose names have the smallest hash, so that the choice is the
    same on every machine. Hidden files, other extensions and links out of ROOT are left out.

    Args:
      root: the folder.
      split: the split to open.
      train_split: what the training part is called if ROOT has no splits of its own; the held-out part is called
        `test`, `val` or `validation`.
      eval_fraction: share of each class held out if ROOT has no splits of its own.
    """

    def __init__(self, root: pathlib.Path, split: str, train_split: str, eval_fraction: float):
        self._root, self._split = root, split
        if (root / "train").is_dir():
            files = _own_split(root, split)
        else:
            files = _held_out_split(root, split, train_split, eval_fraction)
        self.fields = {"image": fields.Image(), "label": fields.Label(tuple(files))}
        self._files = [(name, size, label) for label, found in enumerate(files.values()) for name, size in found]
        self.fingerprint = hashlib.sha256(json.dumps([list(files), self._files]).encode()).hexdigest()[:16]

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
        return str(self._root / self._files[index][0])


def _own_split(root: pathlib.Path, split: str) -> dict[str, list]:
    """Class → its files (name relative to root, size) in a split that has a folder of its own."""
    aliases = _EVAL_NAMES if split == "test" else (split,)
    name = next((n for n in aliases if (root / n).is_dir()), None)
    if name is None:
        have = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
        raise UserError(f"data.name: {root} has no split '{split}'; it has {have}")
    train, files = _classes(root, root / "train"), _classes(root, root / name)
    if list(train) != list(files):
        differ = ", ".join(sorted(set(train) ^ set(files))[:5])
        both = f"{root / 'train'} and {root / name}"
        raise UserError(f"data.name: {both} must hold the same classes; only one has {differ}")
    return files


def _held_out_split(root: pathlib.Path, split: str, train_split: str, eval_fraction: float) -> dict[str, list]:
    """Class → its files in the training or held-out part of a folder without splits."""
    if split not in (train_split, *_EVAL_NAMES):
        have = f"{train_split} and {_EVAL_NAMES[0]}"
        raise UserError(f"data.name: {root} has no folder 'train', so its splits are {have}, not '{split}'")
    parts = {}
    for name, files in _classes(root, root).items():
        if len(files) < 2:
            raise UserError(f"data.name: class {root / name} has one image; two are needed, to train and to evaluate")
        ranked = sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).digest())
        held_out = min(max(round(len(files) * eval_fraction), 1), len(files) - 1)
        parts[name] = sorted(ranked[held_out:] if split == train_split else ranked[:held_out])
    return parts


def _classes(root: pathlib.Path, folder: pathlib.Path) -> dict[str, list[tuple[str, int]]]:
    """Class → its images (name relative to root, size in bytes), both sorted by name."""
    inside = root.resolve()
    classes = {}
    for entry in sorted(_scan(folder), key=lambda e: e.name):
        if entry.is_dir() and _within(entry, inside):
            classes[entry.name] = sorted(
                (os.path.relpath(image.path, root), image.stat().st_size)
                for image in _scan(entry.path)
                if image.name.lower().endswith(EXTENSIONS) and image.is_file() and _within(image, inside)
            )
    if not classes:
        raise UserError(f"data.name: {folder} has no class folders; images must be in {folder}/CLASS/")
    for name, files in classes.items():
        if not files:
            raise UserError(f"data.name: {folder / name} has no image ({' '.join(EXTENSIONS)}); add some or remove it")
    return classes


def _scan(folder) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"data.name: cannot list {folder}: {error.strerror}") from error


def _within(entry: os.DirEntry, root: pathlib.Path) -> bool:
    """Whether an entry is no link, or a link to something below root."""
    return not entry.is_symlink() or pathlib.Path(entry.path).resolve().is_relative_to(root)
