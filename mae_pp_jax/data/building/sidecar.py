"""A folder of images and a JSON-lines or CSV file that says what is in them.

CSV is what Python's csv module reads: a quote within an unquoted cell is text, lines end in LF, CR LF or CR, and quoted
cells may hold line ends. Rows are counted, and parts cut, where that parser ends a row.
"""

import collections
import csv
import dataclasses
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import tree
from mae_pp_jax.data.building.folders import Inside, resolve
from mae_pp_jax.data.building.items import DAMAGED, Broken, Columns, Item, Part
from mae_pp_jax.data.text import cell

log = logging.getLogger(__name__)

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # looked for in the folder when none is named
NOT_NAMED = "in no row of the sidecar"
_ROWS = 1000  # of a part
_MOST_LINES = 1000  # of one row; a quoted cell that is longer is taken for one that never closes
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".jsonl", ".ndjson", *_DELIMITERS)
_UTF8 = dict(encoding="utf-8", errors="surrogateescape")  # gives back the same bytes, whatever they are
_SPREADSHEET_LINE = 16  # bytes, at most, of a first line that names the separator
_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16
csv.field_size_limit(2**31 - 1)  # for the whole process: 128 KiB by default, and captions may be longer


@dataclasses.dataclass(frozen=True)
class SidecarReader:
    """Rows of `path`, each naming an image file relative to `root`.

    A row whose file is absent, lies outside `root` or cannot be read is an item that cannot be used; so is a line that
    is no row. Files of the folder that no row names are not read (see `others`).
    """

    root: str
    path: str
    columns: Columns
    class_names: tuple[str, ...] = ()

    def parts(self) -> list[Part]:
        if self._suffix not in _SUFFIXES:
            raise UserError(f"--sidecar: {self.path} must end in {', '.join(_SUFFIXES)}, .parquet")
        try:
            header, start, dialect = self._header()
            bounds, number, odd = [start], 0, []  # bytes at which parts begin, and the last one ends
            end = start
            with epath.Path(self.path).open("rb") as file:
                file.seek(start)
                for number, (end, row) in enumerate(_rows(file, start, header, dialect), 1):
                    if number % _ROWS == 0:
                        bounds.append(end)
                    if _escaped(row.text):
                        odd.append(number)
        except OSError as error:
            raise UserError(f"--sidecar: cannot read {self.path}: {error.strerror}") from error
        if not number:
            raise UserError(f"--sidecar: {self.path} has no row")
        if odd:
            what = "%s: %d rows hold bytes that are no UTF-8, the first is row %d; in texts they become �"
            log.warning(what, self.path, len(odd), odd[0])
        if end != bounds[-1]:
            bounds.append(end)
        pieces = enumerate(zip(bounds, bounds[1:]))
        return [Part(self.path, start, stop, first=i * _ROWS, size=bounds[-1]) for i, (start, stop) in pieces]

    def items(self, part: Part) -> Iterator[Item]:
        header, _, dialect = self._header()
        with epath.Path(part.path).open("rb") as file:
            file.seek(part.start)
            content = io.BytesIO(file.read(part.stop - part.start))
        for number, (_, row) in enumerate(_rows(content, part.start, header, dialect), part.first + 1):
            place = f"{os.path.basename(self.path)}, row {number}"
            try:
                yield self._item(place, row)
            except Exception as error:  # of any kind: a row that cannot be read never ends the build
                yield Item(place, Broken(DAMAGED, f"{type(error).__name__}: {error}"))

    def others(self) -> Iterator[tuple[str, str]]:
        """(name, why it is not read if no row names it) of every other file in the folder."""
        for name, reason in tree.walk(self.root) if "://" not in self.root else ():
            if not _same(os.path.join(self.root, name), self.path):
                yield name, reason or NOT_NAMED

    @property
    def _suffix(self) -> str:
        return os.path.splitext(self.path)[1].lower()

    def _item(self, place: str, row: "_Row") -> Item:
        name = self.columns.value("image", row.values) if isinstance(row.values, dict) else None
        if not isinstance(name, str):
            return Item(place, Broken(DAMAGED, row.fault or "names no file"))
        name = resolve(self.root, name)
        return self.columns.item(name, Inside(self.root, name), _legible(row.values))

    def _header(self) -> tuple[list[str], int, dict]:
        """The column names of a CSV file ([] for JSON lines), the byte at which its rows begin, csv's options."""
        with epath.Path(self.path).open("rb") as file:
            begin = file.read(len(_MARK))
            start = len(_MARK) if begin == _MARK else 0
            file.seek(start)
            first = file.readline(_SPREADSHEET_LINE)
        if begin.startswith(_OTHER_MARKS):
            raise UserError(f"--sidecar: {self.path} is UTF-16; save it as UTF-8")
        if self._suffix not in _DELIMITERS:
            return [], start, {}
        if re.fullmatch(rb'"?sep=."?\r?\n', first):  # what spreadsheets write for one another
            start += len(first)
        own = _DELIMITERS[self._suffix]
        found = [self._columns(start, own)]
        for delimiter in ",;\t|".replace(own, ""):  # spreadsheets write ; where numbers have a decimal comma
            if not set(found[0][0]) & set(self.columns.names["image"]):
                found.insert(0, self._columns(start, delimiter))
        if set(found[0][0]) & set(self.columns.names["image"]):
            self.columns.check_names(found[0][0], f"--sidecar: {self.path}")
            return found[0]
        raise UserError(
            f"--sidecar: {self.path} has no column {' or '.join(self.columns.names['image'])}, its columns are "
            f"{', '.join(found[-1][0])}; say which names the file: --columns=image:COLUMN"
        )

    def _columns(self, start: int, delimiter: str) -> tuple[list[str], int, dict]:
        """As `_header`, by a delimiter."""
        dialect = dict(delimiter=delimiter)
        with epath.Path(self.path).open("rb") as file:
            file.seek(start)
            end, row = next(_csv_rows(file, start, 0, dialect), (start, _Row("", [])))
        dialect["skipinitialspace"] = any(cell.startswith(" ") for cell in row.values[1:])
        if dialect["skipinitialspace"]:
            row.values = next(csv.reader([row.text], **dialect))
        return [_legible(cell.strip()) for cell in row.values], end, dialect


@dataclasses.dataclass
class _Row:
    """A row as the parser gives it: its text, its values, and what is wrong with it where it has none."""

    text: str
    values: Any = None
    fault: str = ""


def _rows(file, start: int, header: list[str], dialect: dict) -> Iterator[tuple[int, _Row]]:
    """(byte at which it ends, row as a dict) of every row of a file that stands at byte `start`."""
    if header:
        for end, row in _csv_rows(file, start, len(header), dialect):
            if not row.fault:
                row.values = dict(zip(header, map(cell, row.values)))
            yield end, row
        return
    for line in io.TextIOWrapper(file, newline="", **_UTF8):
        start += _size(line)
        if line.strip():
            try:
                yield start, _Row(line, json.loads(line))
            except (ValueError, RecursionError) as error:
                yield start, _Row(line, fault=f"no JSON: {error}")


def _csv_rows(file, start: int, columns: int, dialect: dict) -> Iterator[tuple[int, _Row]]:
    """(byte at which it ends, row as a list of cells) of every row; `columns` 0 takes any number of cells.

    A row of several lines that has another number of cells, or a quote where none may stand, began with a quote that
    does not close: its first line is at fault, and the next line is read as a row of its own.
    """
    lines = _Lines(io.TextIOWrapper(file, newline="", **_UTF8))
    reader = csv.reader(lines, **dialect)
    while True:
        try:
            cells, fault = lines.row(reader)
        except StopIteration:
            return
        count_fault = f"{len(cells)} cells, the header has {columns}" if columns and len(cells) != columns else ""
        if len(lines.taken) > 1 and (fault or count_fault or lines.ended or not _strict(lines.taken, dialect)):
            lines.give_back()
            fault = "a quoted cell that does not close"
        if fault:
            reader = csv.reader(lines, **dialect)
        text = "".join(lines.taken)
        start += _size(text)
        if text.strip(" \r\n"):
            yield start, _Row(text, cells, fault or count_fault)


class _Lines:
    """Lines of a text for csv.reader, which says by taking them which lines belong to a row."""

    def __init__(self, text: io.TextIOWrapper):
        self._text, self._waiting = text, collections.deque()
        self.taken: list[str] = []  # of the present row
        self.ended = False  # whether the row wanted more

    def __iter__(self):
        return self

    def __next__(self) -> str:
        line = ""
        if len(self.taken) < _MOST_LINES:
            line = self._waiting.popleft() if self._waiting else self._text.readline()
        if not line:
            self.ended = True
            raise StopIteration
        self.taken.append(line)
        return line

    def row(self, reader) -> tuple[list[str], str]:
        """The cells of the next row, and what is wrong with it."""
        self.taken, self.ended = [], False
        try:
            return next(reader), "a quoted cell that does not close" if self.ended else ""
        except csv.Error as error:
            return [], str(error)

    def give_back(self) -> None:
        """All lines of the row but the first belong to the next ones."""
        self._waiting.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _strict(lines: list[str], dialect: dict) -> bool:
    """Whether csv finds nothing to forgive in a row."""
    try:
        return len(list(csv.reader(lines, strict=True, **dialect))) == 1
    except csv.Error:
        return False


def _size(text: str) -> int:
    return len(text.encode(**_UTF8))


def _escaped(text: str) -> bool:
    return not text.isascii() and re.search("[\udc80-\udcff]", text) is not None


def _legible(value: Any) -> Any:
    """A value without the halves of characters that stand for bytes that are no UTF-8."""
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [_legible(v) for v in value]
    return {_legible(k): _legible(v) for k, v in value.items()} if isinstance(value, dict) else value


def _same(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)
