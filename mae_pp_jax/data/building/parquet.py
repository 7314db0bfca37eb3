"""Parquet files whose rows hold pictures or name their files, as Hugging Face's datasets and others.

The picture of a row is bytes, a struct {bytes, path} or the name of a file. Numbers of classes are named as the file
itself says (Hugging Face's `ClassLabel`, in the metadata of its schema).
"""

import contextlib
import dataclasses
import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import text, tree
from mae_pp_jax.data.building.folders import Inside, resolve
from mae_pp_jax.data.building.items import (
    COLUMNS,
    DAMAGED,
    NO_IMAGE,
    UNREADABLE,
    Broken,
    Columns,
    Content,
    Item,
    Part,
    too_large,
)
from mae_pp_jax.data.building.sidecar import NOT_NAMED

_PART_ROWS = 1000  # of a part at least, but for the last of a file
_READ_AT_ONCE = 16  # rows, with their pictures
_BUFFER = 1 << 20  # bytes of a column; else pyarrow reads all of a row group at once

_SHARD = re.compile(r"([A-Za-z]\w*)-\d+-of-\d+\b.*")  # the name of a file that is one of several of a split
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclasses.dataclass(frozen=True)
class ParquetReader:
    """Rows of Parquet files, in parts of whole row groups.

    Attributes:
      root: the folder of the files, in which rows may name pictures.
      files: (path, split or None) of each file.
      columns: which column means what.
      image: the column with the pictures or their names.
      names: column → names of the classes that its numbers stand for, where a file says nothing itself.
      class_names: of the label, in the order of its numbers.
      whole: whether the input is all of the folder, so that its other files are told.
    """

    root: str
    files: tuple[tuple[str, str | None], ...]
    columns: Columns
    image: str
    names: dict[str, tuple[str, ...]]
    class_names: tuple[str, ...]
    whole: bool

    def parts(self) -> list[Part]:
        parts = []
        for path, split in self.files:
            size = storage.size(path)
            try:
                with _opened(path) as file:
                    rows = _row_groups(file)
            except Exception:  # of any kind: who reads the part meets it again, and tells
                rows = []
            start = first = waiting = 0
            for stop, number in enumerate(rows, 1):
                waiting += number
                if waiting >= _PART_ROWS or stop == len(rows):
                    parts.append(Part(path, start, stop, first=first, split=split, size=size))
                    start, first, waiting = stop, first + waiting, 0
            if not rows:
                parts.append(Part(path, split=split, size=size))
        return parts

    def items(self, part: Part) -> Iterator[Item]:
        name = _relative(part.path, self.root)
        row = part.first
        try:
            with _opened(part.path) as file:
                names, groups = self.names | _features(file.schema_arrow)[1], _row_groups(file)
                for group in range(part.start, part.stop):
                    end = row + groups[group]
                    try:
                        for values in _rows(file, group, self._wanted(file.schema_arrow)):
                            yield self._item(f"{name}/{row}", _partition(name) | _named(values, names), part.split)
                            row += 1
                    except Exception as error:  # of any kind: damage never ends the build
                        detail = f"row group {group}: {' '.join(str(error).split()) or type(error).__name__}"
                        for row in range(row, end):
                            yield Item(f"{name}/{row}", Broken(DAMAGED, detail))
                    row = end
        except Exception as error:
            detail = f"{' '.join(str(error).split()) or type(error).__name__}; what is in this file is lost"
            yield Item(name, Broken(DAMAGED, detail))

    def others(self) -> Iterator[tuple[str, str]]:
        """(name, reason) of the other files of the folder, unless a row names them."""
        read = {os.path.realpath(path) for path, _ in self.files}
        for name, reason in tree.walk(self.root) if self.whole and "://" not in self.root else ():
            if os.path.realpath(os.path.join(self.root, name)) not in read:
                yield name, reason or NOT_NAMED

    def _wanted(self, schema: pa.Schema) -> list[str]:
        """The columns that are read: not the bytes and vectors which mean nothing here."""
        known = {self.image, *(column for names in self.columns.names.values() for column in names)}
        return [field.name for field in schema if field.name in known or not _bulky(field.type)]

    def _item(self, key: str, row: dict[str, Any], split: str | None) -> Item:
        try:
            value = row.pop(self.image, None)
            if isinstance(value, Mapping):
                value = value.get("bytes") or value.get("path")
            if isinstance(value, bytes):
                read = Broken(UNREADABLE, fault) if (fault := too_large(len(value))) else Content(value)
            elif isinstance(value, str) and value.strip():
                key = resolve(self.root, value)
                read = Inside(self.root, key)
            else:
                read = Broken(NO_IMAGE, f"its column {self.image} holds {'nothing' if value is None else 'no file'}")
            return self.columns.item(key, read, row, split)
        except Exception as error:  # of any kind: a row that cannot be read never ends the build
            return Item(key, Broken(DAMAGED, f"{type(error).__name__}: {error}"))


def open_files(
    root: str, paths: Sequence[str], columns: Columns, *, whole: bool = False, sidecar: bool = False
) -> ParquetReader:
    """The reader of Parquet files.

    Args:
      root: the folder in which they stand, and in which their rows may name pictures.
      paths: of the files.
      columns: which column means what.
      whole: whether the input is all of the folder.
      sidecar: the same, with one file that says what the pictures of the folder are, and whose name is no split.

    Raises:
      UserError: a file has no column with pictures.
    """
    image, names, there = "", {}, []
    for path in paths:
        try:
            with _opened(path) as file:
                schema = file.schema_arrow
        except Exception:  # of any kind: told by who reads its rows
            continue
        there, (pictures, names) = schema.names, _features(schema)
        columns.check_names(there, f"--from: {path}")
        image = _image_column(path, schema, columns, pictures)
        break
    labels = [column for column in names if column not in columns.names["hashtags"]]
    if len(labels) == 1 and columns.names["label"] == COLUMNS["label"] and not set(there) & set(COLUMNS["label"]):
        columns = Columns(columns.names | {"label": tuple(labels)})
    label = next((names[column] for column in columns.names["label"] if column in names), ())
    classes = dict.fromkeys(filter(None, map(text.name, label)))
    splits = [None for _ in paths] if sidecar else _splits([_relative(path, root) for path in paths])
    return ParquetReader(root, tuple(zip(paths, splits)), columns, image, names, tuple(classes), whole or sidecar)


def _relative(path: str, root: str) -> str:
    return path.removeprefix(root.rstrip("/") + "/") if "://" in root else os.path.relpath(path, root)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    options = dict(buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
    with epath.Path(path).open("rb") as file, pq.ParquetFile(file, **options) as parquet:
        yield parquet


def _row_groups(file: pq.ParquetFile) -> list[int]:
    """The number of rows of each row group."""
    rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != file.metadata.num_rows:
        raise ValueError(f"row groups of {rows[:10]} rows in a file of {file.metadata.num_rows}")
    return rows


def _rows(file: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a row group, column → value."""
    options = dict(batch_size=_READ_AT_ONCE, row_groups=[group], columns=columns, use_threads=False)
    for batch in file.iter_batches(**options):
        values = {name: _values(column) for name, column in zip(batch.schema.names, batch.columns)}
        yield from (dict(zip(values, row)) for row in zip(*values.values(), strict=True))


def _values(column: pa.Array) -> list:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):  # a time that Python cannot hold
        return column.cast(pa.string()).to_pylist()


def _named(row: dict[str, Any], names: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """A row whose numbers of classes are names; numbers of no class, such as -1, are nothing."""
    for column in names.keys() & row.keys():
        known, value = names[column], row[column]
        if isinstance(value, list):
            row[column] = [known[v] for v in value if v is not None and 0 <= v < len(known)]
        elif isinstance(value, int):
            row[column] = known[value] if 0 <= value < len(known) else None
    return row


def _features(schema: pa.Schema) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """What Hugging Face's metadata says: columns of pictures, and column → names of its classes (of lists too)."""
    try:
        said = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        pictures, names = [], {}
        for column, feature in said.items():
            feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
            if feature.get("_type") == "Image":
                pictures.append(column)
            if feature.get("_type") == "ClassLabel" and feature.get("names"):
                names[column] = tuple(map(str, feature["names"]))
    except (KeyError, ValueError, TypeError, AttributeError):  # no such metadata, or of another form
        return [], {}
    return pictures, names


def _image_column(path: str, schema: pa.Schema, columns: Columns, pictures: list[str]) -> str:
    """The column with the pictures: of those that may have them the one with bytes, else with names of files."""
    asked = columns.names["image"]
    there = [name for name in asked if name in schema.names]
    own = [name for name in pictures if name in schema.names] if asked == COLUMNS["image"] else []
    with_bytes = [name for name in there if _holds_bytes(schema.field(name).type)]
    if found := (with_bytes or own or there):
        return found[0]
    raise UserError(
        f"--from: {path} has no column {' or '.join(asked) or 'with pictures'}, its columns are "
        f"{', '.join(schema.names)}; say which holds the pictures: --columns=image:COLUMN"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _bulky(kind: pa.DataType) -> bool:
    """Whether values are bytes or vectors of numbers, as of further pictures and embeddings."""
    if any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)):
        inside = kind.value_type
        return pa.types.is_floating(inside) or pa.types.is_nested(inside) or _holds_bytes(inside)
    return _holds_bytes(kind)


def _splits(names: list[str]) -> list[str | None]:
    """The split of each file, by the word for it in the file's name or the nearest folder's.

    Where one has such a word, `extra-00000-of-00002.parquet` belongs to a split `extra`.
    """
    found = [_split(name) for name in names]
    if any(found):
        shards = [_SHARD.fullmatch(os.path.basename(name)) for name in names]
        found = [split or (shard[1] if shard else None) for split, shard in zip(found, shards)]
    return found


def _split(name: str) -> str | None:
    for piece in reversed(name.split("/")):
        if found := next(filter(None, map(tree.split_word, re.findall("[A-Za-z]+", piece))), None):
            return found
    return None


def _partition(name: str) -> dict[str, str | None]:
    """The columns that stand in the names of folders, as in `label=cat/0.parquet`."""
    pairs = (folder.partition("=") for folder in name.split("/")[:-1])
    values = {key: urllib.parse.unquote(value) for key, equals, value in pairs if key and equals}
    return {key: None if value == _NO_VALUE else value for key, value in values.items()}
