"""Folders of images: one folder per class, with or without a folder per split above; and reading that stays inside."""

import dataclasses
import errno
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator

from etils import epath

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import tree
from mae_pp_jax.data.building.items import MISSING, OUTSIDE, UNREADABLE, Columns, Item, LeftOut, Part, too_large

_FILES = 1000  # of a part


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """ROOT/CLASS/… or ROOT/SPLIT/CLASS/…; the class of an image is the folder below the root or split."""

    root: str
    columns: Columns
    class_names: tuple[str, ...] = ()

    def parts(self) -> list[Part]:
        splits = self._splits()
        parts = []
        for folder in splits or [""]:
            names = sorted(n for names in tree.classes(self.root, folder)[0].values() for n in names)
            for start in range(0, len(names), _FILES):
                chosen = tuple(names[start : start + _FILES])
                size = sum(os.path.getsize(os.path.join(self.root, n)) for n in chosen)
                parts.append(Part(self.root, first=start, names=chosen, split=splits.get(folder), size=size))
        if not parts:
            has = next((f"; not used: {tree.legible(name)} ({reason})" for name, reason in self.others()), "")
            raise UserError(f"--from: {self.root} has no images in class folders ({self.root}/CLASS/*.jpg){has}")
        return parts

    def items(self, part: Part) -> Iterator[Item]:
        for name in part.names:
            label = tree.class_name(name.split("/")[1 if part.split else 0])
            yield self.columns.item(name, Listed(self.root, name), {"label": label}, part.split)

    def others(self) -> Iterator[tuple[str, str]]:
        """(name, reason) of every file that is not read."""
        splits = self._splits()
        for name, reason in tree.walk(self.root):
            top, *below = name.split("/")
            if splits and not reason:
                reason = tree.NO_SPLIT if top not in splits else "" if len(below) > 1 else tree.NO_CLASS
            elif not reason and not below:
                reason = tree.NO_CLASS
            if reason:
                yield name, reason

    def _splits(self) -> dict[str, str]:
        try:
            return tree.split_folders(self.root)
        except UserError as error:
            raise UserError(f"--from: {error}") from error


def resolve(root: str, name: str) -> str:
    r"""The name, relative to `root` and with /, of the file that a row means.

    A file that is there as it is written comes first. Else a name may be a full path below root, come from Windows
    (`sub\\1.jpg`), have spaces around it, or be the same text in another Unicode form, as macOS writes it.
    """
    plain = posixpath.normpath(name)
    if "://" in root:
        return posixpath.normpath(name.removeprefix(root.rstrip("/") + "/"))
    if not os.path.isabs(name) and _is_there(root, plain):
        return plain
    for text in (name, name.strip(), name.replace("\\", "/"), name.strip().replace("\\", "/")):
        relative = posixpath.normpath(_below(root, text))
        for form in (relative, *(unicodedata.normalize(form, relative) for form in ("NFC", "NFD"))):
            if not os.path.isabs(form) and _is_there(root, form):
                return form
    return plain


def _is_there(root: str, name: str) -> bool:
    try:
        return os.path.lexists(os.path.join(root, name))
    except ValueError:  # a name that no file can have
        return False


def _below(root: str, name: str) -> str:
    """A full path relative to root if it is below it; any other name as it is."""
    if not os.path.isabs(name) or "\0" in name:
        return name
    path = posixpath.normpath(name)
    folder, base = os.path.split(path)
    for inside, full in (
        (os.path.abspath(root), path),
        (os.path.realpath(root), path),
        (os.path.realpath(root), os.path.join(os.path.realpath(folder), base)),
    ):
        if full.startswith(inside.rstrip("/") + "/"):
            return os.path.relpath(full, inside)
    return name


def read_inside(root: str, name: str) -> bytes:
    """The bytes of a file below `root`.

    Raises:
      LeftOut: it is not there, cannot be read, or lies outside: by an absolute name, by `..`, or by a link.
    """
    if os.path.isabs(name) or name.split("/")[0] == "..":
        raise LeftOut(OUTSIDE, name)
    if "://" not in root:
        try:
            inside, real = os.path.realpath(root), os.path.realpath(os.path.join(root, name))
        except (OSError, ValueError) as error:
            raise LeftOut(UNREADABLE, str(error)) from error
        if os.path.commonpath([inside, real]) != inside:
            raise LeftOut(OUTSIDE, f"{name} is a link")
    return read(root, name)


def read(root: str, name: str) -> bytes:
    """The bytes of a file that was found below `root`, perhaps through links.

    Raises:
      LeftOut: it is not there or cannot be read.
    """
    try:
        path = os.path.join(root, name)
        path = epath.Path(path) if "://" in root else path
        if fault := too_large(storage.size(path)):
            raise LeftOut(UNREADABLE, fault)
        if "://" in root:
            return path.read_bytes()
        if not os.path.isfile(path):
            raise LeftOut(UNREADABLE, "a folder or device, and no file")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        windows = "; its \\ are no separators here" if "\\" in name else ""
        far = re.match(r"[A-Za-z]:[\\/]", name)
        raise LeftOut(OUTSIDE if far else MISSING, f"{name}{windows}") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = MISSING if getattr(error, "errno", None) in (errno.ENOTDIR, errno.ENAMETOOLONG) else UNREADABLE
        raise LeftOut(reason, getattr(error, "strerror", None) or str(error)) from error


@dataclasses.dataclass(frozen=True)
class Inside:
    """Reads a file below `root`; see `read_inside`."""

    root: str
    name: str

    def __call__(self) -> bytes:
        return read_inside(self.root, self.name)


@dataclasses.dataclass(frozen=True)
class Listed(Inside):
    """Reads a file that the listing of `root` has found; links lead where their owner wants."""

    def __call__(self) -> bytes:
        return read(self.root, self.name)
