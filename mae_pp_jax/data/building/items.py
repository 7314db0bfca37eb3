"""What a reader gives for each image that it finds, and how its columns become hashtags, caption and label."""

import dataclasses
import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import decode, text

# The meanings that a column may have → the column names that have it by themselves.
COLUMNS = {
    "image": ("file", "file_name", "filename", "image", "path", "image/encoded", "jpg", "png"),
    "hashtags": ("hashtags", "tags", "keywords"),
    "caption": ("caption", "text"),
    "label": ("label", "class", "cls"),
    "split": ("split",),
}

# Why an image is left out.
MISSING, OUTSIDE, DAMAGED = "missing", "outside the folder", "damaged entry"
NO_IMAGE, UNREADABLE, SMALL, TWICE = "no image", "unreadable", "too small", "listed twice"

# The largest picture that is read has 100 million pixels: 400 MB without compression. A larger file, such as one of a
# few megabytes in a compressed tar, would only fill the memory.
MOST_BYTES = 4 * decode.MAX_PIXELS


class LeftOut(Exception):
    """An image cannot be used: one of the reasons above, and what exactly is wrong."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclasses.dataclass(frozen=True)
class Content:
    """A file that has been read."""

    content: bytes

    def __call__(self) -> bytes:
        return self.content


@dataclasses.dataclass(frozen=True)
class Broken:
    """A place where an image should be."""

    reason: str
    detail: str

    def __call__(self) -> bytes:
        raise LeftOut(self.reason, self.detail)


def too_large(size: int) -> str:
    """What is wrong with a file of so many bytes; empty if nothing is."""
    return f"{size:,} bytes; image files of at most {MOST_BYTES:,} are read" if size > MOST_BYTES else ""


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of the input, or one place where an image should be.

    Attributes:
      key: its name, unique in the input.
      read: gives the bytes of the file, or raises `LeftOut`.
      hashtags: as `text.tags` gives them; None where the input has no such column.
      caption: None where there is none.
      label: name of the class, as `text.name` gives it; None where there is none.
      split: the input's own split, likewise; None where it has none.
      columns: the other texts, which `--split_by` may name.
    """

    key: str
    read: Callable[[], bytes]
    hashtags: tuple[str, ...] | None = None
    caption: str | None = None
    label: str | None = None
    split: str | None = None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of the input that is read, checked and written at one place; values are plain, so that it can travel.

    Attributes:
      path: the file that holds it.
      start, stop: the bytes, or the records, of the file that belong to it.
      first: number of its first line or record, for messages.
      names: the files that belong to it, if it is a list of files.
      split: the input's own split.
      size: bytes of the file, so that a changed input is noticed.
    """

    path: str
    start: int = 0
    stop: int = 0
    first: int = 0
    names: tuple[str, ...] = ()
    split: str | None = None
    size: int = 0


class Reader(Protocol):
    """An input that can be read in parts; a small object that can travel to other processes.

    Attributes:
      class_names: the classes, if the input says them in advance.
      columns: which column means what.
    """

    columns: "Columns"
    class_names: tuple[str, ...]

    def parts(self) -> list[Part]:
        """Everything that there is to read, in a fixed order."""

    def items(self, part: Part) -> Iterator[Item]:
        """The items of a part, in a fixed order."""

    def others(self) -> Iterator[tuple[str, str]]:
        """(name, reason) of the files beside those of `parts` that are not read, unless an item has the name."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column of the input means what: meaning → candidates, of which the first present one is taken."""

    names: dict[str, tuple[str, ...]]

    @classmethod
    def parse(cls, pairs: str) -> "Columns":
        """`caption:title,label:category` over the defaults; a meaning with no column (`label:`) is not read.

        Raises:
          UserError: another form, or an unknown meaning.
        """
        names = dict(COLUMNS)
        for pair in filter(None, pairs.split(",")):
            meaning, colon, column = pair.partition(":")
            if not colon or meaning not in COLUMNS:
                near = difflib.get_close_matches(meaning, COLUMNS, n=1)
                hint = f"; did you mean '{near[0]}'?" if near and colon else ""
                raise UserError(f"--columns: '{pair}' is not MEANING:COLUMN; meanings: {', '.join(COLUMNS)}{hint}")
            names[meaning] = (column,) if column else ()
        return cls(names)

    def check_names(self, header: Sequence[str], where: str) -> None:
        """Refuses a name with a meaning that two columns of a table have, of which one would be lost.

        Raises:
          UserError: there is one.
        """
        known = {column for names in self.names.values() for column in names}
        if twice := next((name for name in header if name in known and header.count(name) > 1), None):
            raise UserError(f"{where} has {header.count(twice)} columns {twice}; rename all but one")

    def value(self, meaning: str, row: Mapping[str, Any]) -> Any:
        """The value of the column with this meaning; None where there is none or it is `text.missing`."""
        return next((row[c] for c in self.names[meaning] if not text.missing(row.get(c))), None)

    def item(self, key: str, read: Callable[[], bytes], row: Mapping[str, Any], split: str | None = None) -> Item:
        """An item from a row of columns, its texts cleaned; hashtags written in the caption count as hashtags too."""
        named, caption = self.value("hashtags", row), text.plain(self.value("caption", row)) or None
        try:
            tags = () if named is None else text.tags(named)
        except ValueError as error:
            return Item(key, Broken(DAMAGED, str(error)))
        both = dict.fromkeys((*tags, *text.hashtags(caption)))
        return Item(
            key=key,
            read=read,
            hashtags=None if named is None and caption is None else tuple(both),
            caption=caption,
            label=text.name(self.value("label", row)) or None,
            split=text.name(self.value("split", row)) or split,
            columns=row,
        )


def stable_hash(name: str) -> int:
    """64 bits of a text's hash, the same everywhere; 0 is kept for "nothing"."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") or 1
