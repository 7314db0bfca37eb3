"""WebDataset tars: consecutive members with one stem are one example (github.com/webdataset: the format's rules)."""

import dataclasses
import json
import os
import posixpath
import tarfile
import zlib
from collections.abc import Iterator

from etils import epath

from mae_pp_jax.data.building.items import DAMAGED, NO_IMAGE, Broken, Columns, Content, Item, Part
from mae_pp_jax.data.folder import EXTENSIONS

_SIDE = ("json", "txt", "cls", "tags", "hashtags", "caption")  # members that say something about the image
_MOST = 1 << 20  # bytes of such a member
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
            with epath.Path(part.path).open("rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # it would keep them all
                    if not member.isfile():
                        continue
                    here, suffix = _split(member.name)
                    if here != stem and members:
                        yield self._item(f"{name}/{stem}", members)
                        members = {}
                    stem = here
                    if f".{suffix.rpartition('.')[2]}" in EXTENSIONS or suffix in _SIDE:
                        limit = member.size if suffix not in _SIDE else min(member.size, _MOST)
                        content = tar.extractfile(member).read(limit)
                        if len(content) < limit:
                            raise tarfile.ReadError("unexpected end of data")
                        members.setdefault(suffix, content)
                    else:
                        members.setdefault("", b"")
            if members:
                yield self._item(f"{name}/{stem}", members)
        except _FAULTS as error:
            detail = f"{str(error) or type(error).__name__}; what follows in this tar is lost"
            yield Item(f"{name}, after {stem}", Broken(DAMAGED, detail))

    def _item(self, key: str, members: dict[str, bytes]) -> Item:
        row: dict = {}
        image = None
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
            elif suffix and image is None:
                image = content
        read = Broken(NO_IMAGE, "no image among its members") if image is None else Content(image)
        return self.columns.item(key, read, row)


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix of a member: the suffix begins at the first dot of the last part of its name."""
    folder, base = posixpath.split(posixpath.normpath(name))
    base, _, suffix = base.partition(".")
    return posixpath.join(folder, base), suffix.lower()
