"""Which files of a folder are pictures, and in which class and split they are; the same for training and `data build`.

Links are followed. Every file is found once by its name: as a picture, or as something else with the reason why.
"""

import errno
import os
import stat
from collections.abc import Iterator

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import text

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".jp2", ".avif", ".heic", ".heif", ".jxl"),
)
SPLITS = ("train", "test", "val", "validation")  # names of folders that may stand above those of classes
_SPLIT_WORDS = {name: name for name in SPLITS}
_SPLIT_WORDS |= {"training": "train", "testing": "test", "eval": "test", "evaluation": "test"}
_SPLIT_WORDS |= {"valid": "validation", "dev": "validation"}

# Why a file is not used.
HIDDEN, OTHER, DEVICE = "hidden file", "no picture by its name", "device or socket"
LOOP, DEAD = "link in a loop", "link to nothing"
CLOSED, NO_CLASS, NO_SPLIT = "unreadable", "in no class folder", "in no split folder"


def is_hidden(name: str) -> bool:
    """Whether a part of a path is hidden, or of the twin files (`._NAME`, `__MACOSX`) that macOS adds to archives."""
    return any(part.startswith(".") and part not in (".", "..") or part == "__MACOSX" for part in name.split("/"))


def walk(root: str, inside: str = "") -> Iterator[tuple[str, str]]:
    """(name with /, "" for a picture or why it is none) of every file below a folder, sorted.

    Links are followed, but for one that leads to a folder in which it stands, of which root is the topmost.

    Args:
      root: the folder.
      inside: the folder of it (or of folders of it, with /) to look at, to which names are relative; empty: root itself.
    """
    above, folder = [os.stat(root)], root
    for part in filter(None, inside.split("/")):
        folder = os.path.join(folder, part)
        above.append(os.stat(folder))
    return _walk(folder, "", tuple((about.st_dev, about.st_ino) for about in above))


def _walk(folder: str, prefix: str, above: tuple) -> Iterator[tuple[str, str]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        yield prefix, CLOSED
        return
    for entry in found:
        name = prefix + entry.name
        try:
            about = entry.stat() if entry.is_symlink() else None
            if about and stat.S_ISDIR(about.st_mode) or entry.is_dir():
                here = about or os.stat(entry.path)
                key = here.st_dev, here.st_ino
                if key in above:
                    yield name, LOOP
                else:
                    yield from _walk(entry.path, f"{name}/", (*above, key))
                continue
            usable = entry.is_file()
        except OSError as error:  # of a link: nothing is there, or links that lead to each other
            yield name, LOOP if error.errno == errno.ELOOP else DEAD if entry.is_symlink() else CLOSED
            continue
        picture = entry.name.lower().endswith(EXTENSIONS)
        yield name, HIDDEN if is_hidden(name) else OTHER if not picture else "" if usable else DEVICE


def classes(root: str, split: str = "") -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """Class → names of its pictures relative to root, sorted; and what else is there, with the reason.

    Classes stand in the order of their folders. Folders whose names are the same text (in another Unicode form, or but
    for spaces at the ends) are one class.

    Args:
      root: the folder.
      split: the folder below it that holds the classes; empty: root itself.
    """
    found, others = {}, []
    for name, reason in walk(root, split):
        full = f"{split}/{name}" if split else name
        label, inside, _ = name.partition("/")
        if not reason and not inside:
            reason = NO_CLASS
        if reason:
            others.append((full, reason))
        else:
            found.setdefault(class_name(label), []).append(full)
    return {label: sorted(names) for label, names in found.items()}, others


def class_name(folder: str) -> str:
    """The name of the class whose pictures a folder holds."""
    return text.name(legible(folder)) or "_"


def legible(name: str) -> str:
    r"""A file name that can be printed and written: bytes that are no UTF-8 become `\xe9`."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a pair of UTF-16, from JSON
        return name.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")


def split_word(word: str) -> str | None:
    """The split that a word means, in any case; None for other words."""
    return _SPLIT_WORDS.get(word.lower())


def split_folders(root: str) -> dict[str, str]:
    """Folder → split of the folders of root that are splits; empty where they are classes.

    A folder named train is a split if it holds folders of pictures, and a class if it holds pictures.

    Raises:
      UserError: it may be either, or two folders mean one split.
    """
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if not is_hidden(entry.name) and os.path.isdir(entry.path))
    kinds = {name: _kinds(root, name) for name in names if split_word(name)}
    folders = {split: [n for n in kinds if kinds[n][1] and split_word(n) == split] for split in SPLITS}
    folders = {split: found for split, found in folders.items() if found}
    if "train" not in folders:
        return {}
    others = (name for name in names if name not in kinds)
    beside = next((name for name in others if any(_kinds(root, name))), None)
    train = folders["train"][0]
    if len(folders) == 1 and beside is not None:
        if kinds[train][0] or train not in SPLITS:
            return {}
        raise UserError(
            f"{os.path.join(root, train)} holds folders of pictures, as a split does, and stands beside the class "
            f"'{beside}': if it is a class, move its pictures into it; if it is a split, move {beside} elsewhere"
        )
    if twice := next((found for found in folders.values() if len(found) > 1), None):
        raise UserError(f"{root}: the folders {' and '.join(twice)} mean the same split; join them, or rename one")
    return {found[0]: split for split, found in folders.items()}


def _kinds(root: str, folder: str) -> tuple[bool, bool]:
    """Whether a folder of root holds pictures itself, and whether folders below it do."""
    with os.scandir(os.path.join(root, folder)) as entries:
        entries = [entry for entry in entries if not is_hidden(entry.name)]
    here = any(entry.name.lower().endswith(EXTENSIONS) and entry.is_file() for entry in entries)
    return here, any(not reason and "/" in name for name, reason in walk(root, folder))
