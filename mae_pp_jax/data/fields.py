"""What a record may hold: fields, each of a declared kind, and the sources that give such records.

A record is a dict, field → value. Its source declares the kind of each field once; sources that wrap another one pass
on the fields that they do not know. So a new kind of data needs a kind here, a source that gives it and a stage that
takes it, and nothing between them.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from mae_pp_jax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture: the bytes of a file, or uint8 [height, width, 3], RGB, of any size (`images.pixels` takes both)."""

    def encode(self, value: bytes | np.ndarray) -> bytes:
        """The height and width in pixels (0 for a file) in 4 bytes each, then the pixels or the file."""
        height, width = value.shape[:2] if isinstance(value, np.ndarray) else (0, 0)
        return np.array([height, width], "<i4").tobytes() + (value.tobytes() if height else value)

    def decode(self, data: np.ndarray) -> bytes | np.ndarray:
        height, width = data[:8].view("<i4").tolist()
        return data[8:].reshape(height, width, 3) if height else data[8:].tobytes()


@dataclasses.dataclass(frozen=True)
class Label:
    """One class: int, an index into `names`; -1 where it is unknown."""

    names: tuple[str, ...]

    def encode(self, value: int) -> bytes:
        return int(value).to_bytes(4, "little", signed=True)

    def decode(self, data: np.ndarray) -> int:
        return int.from_bytes(data, "little", signed=True)


@dataclasses.dataclass(frozen=True)
class Ids:
    """Any number of names of a vocabulary, such as hashtags: int32 [n], indices into `names`."""

    names: tuple[str, ...]

    def encode(self, value: np.ndarray) -> bytes:
        return np.asarray(value, "<i4").tobytes()

    def decode(self, data: np.ndarray) -> np.ndarray:
        return np.frombuffer(data.tobytes(), "<i4")


@dataclasses.dataclass(frozen=True)
class Text:
    """One text, such as a caption: str."""

    def encode(self, value: str) -> bytes:
        return value.encode()

    def decode(self, data: np.ndarray) -> str:
        return data.tobytes().decode()


@dataclasses.dataclass(frozen=True)
class Texts:
    """Any number of texts, such as hashtags as people wrote them: tuple of str."""

    def encode(self, value: tuple[str, ...]) -> bytes:
        """Each text in UTF-8 after its length in 4 bytes."""
        texts = [text.encode() for text in value]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)

    def decode(self, data: np.ndarray) -> tuple[str, ...]:
        content, at, found = data.tobytes(), 0, []
        while at < len(content):
            stop = at + 4 + int.from_bytes(content[at : at + 4], "little")
            found.append(content[at + 4 : stop].decode())
            at = stop
        return tuple(found)


class Field(Protocol):
    """A kind of field; `encode` and `decode` are how caches store a value.

    `decode` gets the bytes as uint8 [bytes], and may give a view of them, which nobody may write to.
    """

    def encode(self, value: Any) -> bytes: ...

    def decode(self, data: np.ndarray) -> Any: ...


class Source(Protocol):
    """Records by index: `source[i]` is a dict with a value for each of `fields`.

    Fields that several stages and sources know go by one name: `image` (Image), `label` (Label), `hashtags` (Ids, or
    Texts where no vocabulary is applied yet), `caption` (Text), `file_name` (Text); of evaluation sets `answers` (Ids,
    padded with -1), the classes that are right in place of a `label`, and `allowed` (Ids), those that may be answered.

    Attributes:
      fields: the kind of each field.
      fingerprint: a short hash of which records these are.
    """

    fields: Mapping[str, Field]
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def column(self, name: str) -> Iterator:
        """The values of one field of all records, in order; without reading images where that can be avoided."""

    def describe(self, index: int) -> str:
        """Where a record comes from, for messages to people; of a record that is a file, its path."""


class Wrapper:
    """Another source; a subclass changes the fields it knows, and everything else is passed on.

    Args:
      source: the other source.
      fields: kinds of fields that differ from the other source's, or are added to them.
      fingerprint: of these records; empty: the other source's.
    """

    def __init__(self, source: Source, fields: Mapping[str, Field] | None = None, fingerprint: str = ""):
        self._source = source
        self.fields = {**source.fields, **(fields or {})}
        self.fingerprint = fingerprint or source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[index]

    def column(self, name: str) -> Iterator:
        return self._source.column(name)

    def describe(self, index: int) -> str:
        return self._source.describe(index)


def names(source: Source, field: str) -> tuple[str, ...]:
    """The names that the numbers of a field stand for; empty where the source has no such field, or it is text."""
    return getattr(source.fields.get(field), "names", ())


def labels(source: Source) -> np.ndarray:
    """The classes of all records, int32 [records]; -1 where unknown.

    Raises:
      UserError: the source has no labels.
    """
    if not names(source, "label"):
        raise UserError("data.name: the dataset has no labels")
    return np.fromiter(source.column("label"), np.int32, len(source))
