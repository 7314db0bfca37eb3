"""What a tar holds: its members, which of them make an example, and which are not used and why."""

import dataclasses
import posixpath
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from mae_pp_jax.data import tree
from mae_pp_jax.data.building import items
from mae_pp_jax.data.building.items import DAMAGED, TWICE, UNREADABLE, Broken, Content

IMAGE = "image"  # the meaning of a member that is a picture; that of others is their suffix
FURTHER = "further part of an example"
LINK_OUT = "link out of the tar"
TEXTS = ("json", "txt", "cls", "tags", "hashtags", "caption")  # suffixes that say something about the picture
_MOST = 1 << 20  # bytes of such a member, or of a header that is read whole
_MOST_LINKS = 40  # on the way to a file, as on Linux
_NEAR = 64  # members; where texts stand farther behind their picture, they are read in advance
_READ_WHOLE = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class Unused(NamedTuple):
    """A member, or several with one key, that are not used."""

    name: str
    reason: str
    detail: str = ""


@dataclasses.dataclass
class Example:
    """The members of one key; `done` is the place in the tar at which it is complete."""

    done: int = -1
    texts: dict[str, bytes] = dataclasses.field(default_factory=dict)  # those that are read in advance


@dataclasses.dataclass
class Contents:
    """What is made of the members of a tar, by their place in it.

    Attributes:
      examples: by key.
      uses: place → (key, `IMAGE` or the suffix of a text; empty for one that is not read).
      linked: place of a link → where the bytes of its file begin, and how many there are.
      unused: place → what is told there.
    """

    examples: dict[str, Example] = dataclasses.field(default_factory=dict)
    uses: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
    linked: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
    unused: dict[int, list[Unused]] = dataclasses.field(default_factory=dict)


class Archive:
    """A tar that is read from its beginning; a context manager."""

    def __init__(self, path: str):
        self._path, self._other = path, None
        self._tar, self._files = None, []

    def __enter__(self) -> "Archive":
        self._tar = self._open()
        return self

    def __exit__(self, *error) -> None:
        for file in reversed(self._files):
            file.close()

    def members(self) -> Iterator[tarfile.TarInfo]:
        """All members; also of archives that were appended as they are (`cat a.tar b.tar`).

        Raises:
          tarfile.TarError, OSError and others: the tar is damaged or cut.
        """
        while (member := self._tar.next()) is not None or self._goes_on():
            self._tar.members = []  # it would keep them all
            if member is not None:
                yield member

    def content(
        self, member: tarfile.TarInfo, linked: tuple[int, int] | None, meaning: str
    ) -> Content | Broken | bytes:
        """What reads a picture, or the first bytes of a text; `linked` is where the bytes of a link stand."""
        size = linked[1] if linked else member.size
        if meaning == IMAGE and (fault := items.too_large(size)):
            return Broken(UNREADABLE, fault)
        wanted = size if meaning == IMAGE else min(size, _MOST)
        if linked:  # a reader of its own goes back, so that this one goes on where it is
            self._other = self._other or self._open()
            self._other.fileobj.seek(linked[0])
            content = self._other.fileobj.read(wanted)
        else:
            content = self._tar.extractfile(member).read(wanted)
        if len(content) < wanted:
            raise tarfile.ReadError("unexpected end of data")
        return Content(content) if meaning == IMAGE else content

    def _open(self) -> tarfile.TarFile:
        file = epath.Path(self._path).open("rb")
        self._files.append(file)
        tar = tarfile.open(fileobj=file, mode="r:*", tarinfo=_Header, errors="surrogateescape")
        self._files.append(tar)
        return tar

    def _goes_on(self) -> bool:
        """Whether another archive follows where tarfile has found no further header."""
        file = self._tar.fileobj
        file.seek(self._tar.offset)
        block = file.read(tarfile.BLOCKSIZE)
        if not block:
            raise tarfile.ReadError("it ends without an end mark: it was cut")
        if any(block):
            raise tarfile.ReadError("a header that is damaged or cut")
        at = self._tar.offset
        while block and not any(block):
            at += len(block)
            block = file.read(tarfile.BLOCKSIZE)
        self._tar.offset = at
        return bool(block)


class _Header(tarfile.TarInfo):
    """A header of a tar; one that holds the name of a member or the like, and is read whole, may not be large."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        header = super().frombuf(buf, encoding, errors)
        if header.type in _READ_WHOLE and header.size > _MOST:
            raise tarfile.HeaderError(f"a header of {header.size:,} bytes")
        return header


class _Member(NamedTuple):
    place: int
    name: str
    key: str
    field: str  # what stands between the key and the last dot
    meaning: str  # `IMAGE`, a text's suffix, or empty

    @classmethod
    def of(cls, place: int, name: str) -> "_Member":
        folder, base = posixpath.split(name)
        base, _, suffix = base.partition(".")
        field, _, last = suffix.rpartition(".")
        last = last.lower()
        meaning = last if last in TEXTS else IMAGE if f".{last}" in tree.EXTENSIONS else ""
        return cls(place, name, posixpath.join(folder, base), field, meaning)


def look(path: str) -> Contents:
    """Reads the headers of a tar up to its end or its first damage."""
    contents, members, links, files = Contents(), [], [], {}
    try:
        with Archive(path) as archive:
            for place, member in enumerate(archive.members()):
                name = posixpath.normpath(member.name.replace("\\", "/"))
                if member.isdir():
                    continue
                if tree.is_hidden(name):
                    contents.unused[place] = [Unused(name, tree.HIDDEN)]
                elif member.isfile():
                    files[name] = member.offset_data, member.size
                    members.append(_Member.of(place, name))
                elif member.issym() or member.islnk():
                    folder = posixpath.dirname(name) if member.issym() else ""
                    links.append(
                        (place, name, posixpath.normpath(posixpath.join(folder, member.linkname)), member.issym())
                    )
                else:
                    contents.unused[place] = [Unused(name, tree.OTHER, "a device, and no file")]
    except Exception:  # of any kind: who reads the members meets it again, and tells
        pass
    members += _follow(links, files, contents)
    groups: dict[str, list[_Member]] = {}
    for member in sorted(members):
        groups.setdefault(member.key, []).append(member)
    for key, group in groups.items():
        _arrange(contents, key, group)
    _read_in_advance(path, contents)
    return contents


def _follow(links: list, files: dict, contents: Contents) -> Iterator[_Member]:
    """The links that lead, perhaps over other links, to files of the tar."""
    targets = {name: target for _, name, target, _ in links}
    folders = {folder for name in files for folder in _above(name)} | {"."}
    for place, name, target, symbolic in links:
        found = _end(target, targets, files)
        if found in files:
            contents.linked[place] = files[found]
            yield _Member.of(place, name)
        elif found in folders:
            contents.unused[place] = [Unused(name, tree.OTHER, f"a link to the folder {target}")]
        else:
            reason = LINK_OUT if symbolic else DAMAGED
            contents.unused[place] = [Unused(name, reason, f"a link to {target}, which is no file of this tar")]


def _end(target: str, targets: dict[str, str], files: dict) -> str:
    """Where a link leads over other links, of which some may stand for folders on the way."""
    for _ in range(_MOST_LINKS):
        if target in files:
            break
        link = next((folder for folder in (target, *_above(target)) if folder in targets), None)
        if link is None:
            break
        target = posixpath.normpath(posixpath.join(targets[link], posixpath.relpath(target, link)))
    return target


def _above(name: str) -> Iterator[str]:
    """The folders in which a name stands, the nearest first."""
    while (name := posixpath.dirname(name)) not in ("", "/"):
        yield name


def _arrange(contents: Contents, key: str, group: list[_Member]) -> None:
    """Chooses the picture and texts of an example; of what is left, each further field is told once."""
    pictures = [m for m in group if m.meaning == IMAGE]
    picture = min(pictures, key=lambda m: (m.field != "", m.place), default=None)
    example = contents.examples[key] = Example()
    if picture is None:
        for member in group:
            contents.uses[member.place] = key, ""
        example.done = group[-1].place
        return
    used = {IMAGE: picture}
    for member in sorted(group, key=lambda m: (m.field != picture.field, m.place)):
        if member.meaning and member.field in (picture.field, ""):
            used.setdefault(member.meaning, member)
    for meaning, member in used.items():
        contents.uses[member.place] = key, meaning
    last = max(member.place for member in used.values())
    example.done = picture.place if last - picture.place > _NEAR else last
    rest: dict[str, list[_Member]] = {}
    for member in group:
        if member not in used.values():
            further = member.field not in (picture.field, "")
            rest.setdefault(member.field if further else member.name, []).append(member)
    for members in rest.values():
        contents.unused.setdefault(members[0].place, []).append(_told(key, picture, used, members))


def _told(key: str, picture: _Member, used: dict[str, _Member], members: list[_Member]) -> Unused:
    first = next((member for member in members if member.meaning == IMAGE), members[0])
    if first.name in {member.name for member in used.values()}:
        return Unused(first.name, TWICE, "the first of this name is used")
    names = ", ".join(posixpath.basename(member.name) for member in members)
    why = f"keys end at the first dot, and {key} has the picture {posixpath.basename(picture.name)}"
    return Unused(first.name, FURTHER if first.meaning or first.field else tree.OTHER, f"{names}: {why}")


def _read_in_advance(path: str, contents: Contents) -> None:
    """Reads the texts of pictures that stand far before them, so that no picture waits for its texts in memory."""
    far = {
        place: (key, meaning)
        for place, (key, meaning) in contents.uses.items()
        if meaning and place > contents.examples[key].done
    }
    if not far:
        return
    try:
        with Archive(path) as archive:
            for place, member in enumerate(archive.members()):
                if place in far:
                    key, meaning = far[place]
                    contents.examples[key].texts[meaning] = archive.content(member, contents.linked.get(place), meaning)
                    del contents.uses[place]
    except Exception:  # of any kind: who reads the members meets it again, and tells
        pass
