"""WebDataset tars: consecutive members with one stem are one example (github.com/webdataset: the format's rules)."""

import dataclasses
import json
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterator

from etils import epath

from mae_pp_jax.data.building.items import (
    DAMAGED,
    MOST_BYTES,
    NO_IMAGE,
    UNREADABLE,
    Broken,
    Columns,
    Content,
    Item,
    Part,
    too_large,
)
from mae_pp_jax.data.folder import EXTENSIONS

_SIDE = ("json", "txt", "cls", "tags", "hashtags", "caption")  # members that say something about the image
_IMAGE = "image"  # the first of a stem
_MOST = 1 << 20  # bytes of such a member, or of a header that is read whole
_READ_WHOLE = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_FAULTS = (tarfile.TarError, OSError, EOFError, zlib.error)


@dataclasses.dataclass(frozen=True)
class TarReader:
    """Tars, plain or compressed. Of the members with one stem the image, `.json` (an object of columns or a list of
    hashtags), `.txt` (caption), `.cls` (class) and `.tags` are read; nothing is unpacked to disk."""

    paths: tuple[str, ...]
    columns: Columns
    class_names: tuple[str, ...] = ()

    def parts(self) -> list[Part]:
        return [Part(path, size=epath.Path(path).stat().length) for path in self.paths]

    def items(self, part: Part) -> Iterator[Item]:
        name = os.path.relpath(part.path, os.path.commonpath([os.path.dirname(path) for path in self.paths]))
        stem, members = None, {}
        try:
            with (
                epath.Path(part.path).open("rb") as file,
                tarfile.open(fileobj=file, mode="r:*", tarinfo=_Header) as tar,
            ):
                while (member := tar.next()) is not None:
                    tar.members = []  # it would keep them all
                    if not member.isfile():
                        continue
                    here, suffix = _split(member.name)
                    if here != stem and members:
                        yield self._item(f"{name}/{stem}", members)
                        members = {}
                    stem = here
                    if suffix in _SIDE:
                        members.setdefault(suffix, _content(tar, member, _MOST))
                    elif f".{suffix.rpartition('.')[2]}" in EXTENSIONS and _IMAGE not in members:
                        fault = too_large(member.size)
                        content = Broken(UNREADABLE, fault) if fault else Content(_content(tar, member, MOST_BYTES))
                        members[_IMAGE] = content
                    else:
                        members.setdefault("", b"")
            if members:
                yield self._item(f"{name}/{stem}", members)
        except _FAULTS as error:
            detail = f"{str(error) or type(error).__name__}; what follows in this tar is lost"
            yield Item(f"{name}, after {stem}", Broken(DAMAGED, detail))

    def _item(self, key: str, members: dict) -> Item:
        row: dict = {}
        for suffix, content in members.items():
            if suffix == "json":
                try:
                    found = json.loads(content)
                except ValueError:
                    return Item(key, Broken(DAMAGED, f"{key}.json is no JSON"))
                row |= found if isinstance(found, dict) else {"hashtags": found}
            elif suffix in _SIDE:
                meaning = {"txt": "caption", "cls": "label", "tags": "hashtags"}.get(suffix, suffix)
                row.setdefault(self.columns.names[meaning][0], content.decode("utf-8", "replace").strip())
        read = members.get(_IMAGE, Broken(NO_IMAGE, "no image among its members"))
        return self.columns.item(key, read, row)


class _Header(tarfile.TarInfo):
    """A header of a tar; one that holds the name of a member or the like, and is read whole, may not be large."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        header = super().frombuf(buf, encoding, errors)
        if header.type in _READ_WHOLE and header.size > _MOST:
            raise tarfile.HeaderError(f"a header of {header.size:,} bytes")
        return header


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    """The first `most` bytes of a member."""
    size = min(member.size, most)
    content = tar.extractfile(member).read(size)
    if len(content) < size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix of a member: the suffix begins at the first dot of the last part of its name."""
    folder, base = posixpath.split(posixpath.normpath(name))
    base, _, suffix = base.partition(".")
    return posixpath.join(folder, base), suffix.lower()
