"""Folders of images: one folder per class, with or without a folder per split above; and reading that stays inside."""

import dataclasses
import errno
import os
from collections.abc import Iterator

from etils import epath

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data.building.items import MISSING, OUTSIDE, UNREADABLE, Item, LeftOut, Part, too_large
from mae_pp_jax.data.folder import EXTENSIONS
from mae_pp_jax.data.text import name as class_name

_FILES = 1000  # of a part
_SPLITS = ("train", "test", "val", "validation")


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """ROOT/CLASS/… or ROOT/SPLIT/CLASS/…; the class of an image is the folder below the root or split."""

    root: str
    class_names: tuple[str, ...] = ()

    def parts(self) -> list[Part]:
        splits = [name for name in _SPLITS if os.path.isdir(os.path.join(self.root, name))]
        parts = []
        for split in splits if "train" in splits else [""]:
            names = [os.path.join(split, n) for n in image_files(os.path.join(self.root, split)) if "/" in n]
            for start in range(0, len(names), _FILES):
                chosen = tuple(names[start : start + _FILES])
                size = sum(os.path.getsize(os.path.join(self.root, n)) for n in chosen)
                parts.append(Part(self.root, first=start, names=chosen, split=split or None, size=size))
        if not parts:
            raise UserError(f"--from: {self.root} has no images in class folders ({self.root}/CLASS/*.jpg)")
        return parts

    def items(self, part: Part) -> Iterator[Item]:
        for name in part.names:
            label = class_name(name.split("/")[1 if part.split else 0]) or None
            yield Item(name, Inside(self.root, name), label=label, split=part.split, columns={"label": label})


def image_files(root: str) -> Iterator[str]:
    """Names of the image files below a folder, relative to it with /, sorted; hidden ones and links are left out."""
    with os.scandir(root) as entries:
        found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            for name in image_files(entry.path):
                yield f"{entry.name}/{name}"
        elif entry.is_file(follow_symlinks=False) and entry.name.lower().endswith(EXTENSIONS):
            yield entry.name


def read_inside(root: str, name: str) -> bytes:
    """The bytes of a file below `root`.

    Raises:
      LeftOut: it is not there, cannot be read, or lies outside: by an absolute name, by `..`, or by a link.
    """
    if os.path.isabs(name) or name.split("/")[0] == "..":
        raise LeftOut(OUTSIDE, name)
    try:
        if "://" not in root:
            inside, real = os.path.realpath(root), os.path.realpath(os.path.join(root, name))
            if os.path.commonpath([inside, real]) != inside:
                raise LeftOut(OUTSIDE, f"{name} is a link")
        path = epath.Path(root) / name
        if fault := too_large(path.stat().length):
            raise LeftOut(UNREADABLE, fault)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise LeftOut(MISSING, name) from error
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
