"""A folder of images and a JSON-lines or CSV file that says what is in them."""

import csv
import dataclasses
import io
import json
import os
import posixpath
from collections.abc import Iterator

from etils import epath

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data.building.folders import Inside, image_files
from mae_pp_jax.data.building.items import DAMAGED, Broken, Columns, Item, Part
from mae_pp_jax.data.text import cell

NAMES = ("metadata.jsonl", "metadata.csv")  # looked for in the folder when none is named
_ROWS = 1000  # of a part
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (".jsonl", ".ndjson", *_DELIMITERS)


@dataclasses.dataclass(frozen=True)
class SidecarReader:
    """Rows of `path`, each naming an image file relative to `root`.

    A row whose file is absent, lies outside `root` or cannot be read is an item that cannot be used; so is a line that
    is no row. Images of the folder that no row names are not read (see `others`).
    """

    root: str
    path: str
    columns: Columns
    class_names: tuple[str, ...] = ()

    def parts(self) -> list[Part]:
        suffix = os.path.splitext(self.path)[1].lower()
        if suffix not in _SUFFIXES:
            raise UserError(f"--sidecar: {self.path} must end in {', '.join(_SUFFIXES)}")
        bounds = [self._header()[1]]  # bytes at which parts begin, and the last one ends
        try:
            with epath.Path(self.path).open("rb") as file:
                file.seek(end := bounds[0])
                for number, end in _ends(file, end, quoted=suffix in _DELIMITERS):
                    if number % _ROWS == 0:
                        bounds.append(end)
        except OSError as error:
            raise UserError(f"--sidecar: cannot read {self.path}: {error.strerror}") from error
        if end != bounds[-1]:
            bounds.append(end)
        if len(bounds) == 1:
            raise UserError(f"--sidecar: {self.path} has no row")
        pieces = enumerate(zip(bounds, bounds[1:]))
        return [Part(self.path, start, stop, first=i * _ROWS, size=bounds[-1]) for i, (start, stop) in pieces]

    def items(self, part: Part) -> Iterator[Item]:
        header, _ = self._header()
        with epath.Path(part.path).open("rb") as file:
            file.seek(part.start)
            text = file.read(part.stop - part.start).decode("utf-8", "replace")
        for number, row in enumerate(self._rows(text, header), part.first + 1):
            place = f"{os.path.basename(self.path)}, row {number}"
            name = self.columns.value("image", row) if isinstance(row, dict) else None
            if not isinstance(name, str):
                yield Item(place, Broken(DAMAGED, "not readable" if row is None else "names no file"))
            else:
                name = posixpath.normpath(name)
                yield self.columns.item(name, Inside(self.root, name), row)

    def others(self) -> Iterator[str]:
        """Names of all image files in the folder, relative to it, named in the sidecar or not."""
        return image_files(self.root)

    def _rows(self, text: str, header: list[str]) -> Iterator:
        """Rows as dicts; None for a line that is none."""
        if header:
            delimiter = _DELIMITERS[os.path.splitext(self.path)[1].lower()]
            for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
                if cells:
                    yield dict(zip(header, map(cell, cells))) if len(cells) == len(header) else None
            return
        for line in text.split("\n"):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError:
                    yield None

    def _header(self) -> tuple[list[str], int]:
        """The column names of a CSV file ([] for JSON lines) and the byte at which its rows begin."""
        suffix = os.path.splitext(self.path)[1].lower()
        try:
            with epath.Path(self.path).open("rb") as file:
                mark = len(b"\xef\xbb\xbf") if file.read(3) == b"\xef\xbb\xbf" else 0
                if suffix not in _DELIMITERS:
                    return [], mark
                file.seek(mark)
                line = file.readline()
        except OSError as error:
            raise UserError(f"--sidecar: cannot read {self.path}: {error.strerror}") from error
        names = next(csv.reader([line.decode("utf-8", "replace").strip()], delimiter=_DELIMITERS[suffix]), [])
        if not set(names) & set(self.columns.names["image"]):
            raise UserError(
                f"--sidecar: {self.path} has no column {' or '.join(self.columns.names['image'])}, its columns are "
                f"{', '.join(names)}; say which names the file: --columns=image:COLUMN"
            )
        return [name.strip() for name in names], mark + len(line)


def _ends(file, start: int, *, quoted: bool) -> Iterator[tuple[int, int]]:
    """(number of rows up to here, byte at which the last one ends); a quoted cell of a CSV may hold line ends."""
    number, at, quotes = 0, start, 0
    for line in file:
        at += len(line)
        quotes += line.count(b'"') if quoted else 0
        if quotes % 2 == 0 and line.strip():
            number += 1
            yield number, at
