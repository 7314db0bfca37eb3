"""Caches of what is computed from a dataset: decoded images in memory or on the local disk, columns, statistics."""

import concurrent.futures
import contextlib
import itertools
import logging
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tqdm

from mae_pp_jax.core import console, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import decode, faults, fields, images

log = logging.getLogger(__name__)

_AT_A_TIME = 256  # records read before they are written
_OF_A_THREAD = 16  # of these, read by a thread at a time
_ENDS_AT_A_TIME = 2**16
_VALUES, _ENDS = "values.bin", "ends.bin"


class InMemory(fields.Wrapper):
    """Keeps every record of another source, decoded, from its first use on."""

    def __init__(self, source: fields.Source):
        super().__init__(source)
        self._records: list[dict | None] = [None] * len(source)

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        if record is None:  # two threads may both come here; they store the same thing
            record = _decoded(self._source[index])
            self._records[index] = record
        return record


class OnDisk(fields.Wrapper):
    """Another source, decoded once into files on a local disk that all processes and later runs map into memory.

    Args:
      source: the records.
      cache: folder of caches; empty: the user's.

    Raises:
      UserError: the cache cannot be written, or was damaged.
    """

    def __init__(self, source: fields.Source, cache: str):
        super().__init__(source)

        noted = faults.Faults()

        def read(index: int) -> dict:
            record = _decoded(source[index])
            noted.warn(lambda: source.describe(index))
            return record

        def write(half: pathlib.Path) -> None:
            label = f"decoding {len(source):,} images into {half.parent}"
            _write(half, source.fields, len(source), read, label)

        folder = made_once("decoded", source.fingerprint, cache, write)
        self._columns = {name: _Column(folder / name, field, len(source)) for name, field in source.fields.items()}

    def __getitem__(self, index: int) -> dict:
        return {name: column[index] for name, column in self._columns.items()}

    def column(self, name: str) -> Iterator:
        return iter(self._columns[name])


def column(source: fields.Source, name: str, cache: str, read: Callable[[int], Any]) -> Iterator:
    """The values of one field of all records in order, read once for a dataset and kept on disk from then on.

    Args:
      source: the records.
      name: of the field.
      cache: folder of caches; empty: the user's.
      read: gives the value of a record by its index.

    Raises:
      UserError: the cache cannot be written, or was damaged.
    """
    field, records = source.fields[name], len(source)

    def write(half: pathlib.Path) -> None:
        label = f"reading the {name} of {records:,} records"
        _write(half, {name: field}, records, lambda index: {name: read(index)}, label)

    folder = made_once("columns", f"{source.fingerprint}.{name}", cache, write)
    return iter(_Column(folder / name, field, records))


class _Column:
    """The values of one field, mapped into memory from files that `_write` made.

    Args:
      folder: of the files.
      field: kind of the values.
      records: number of values.

    Raises:
      UserError: the files are damaged.
    """

    def __init__(self, folder: pathlib.Path, field: fields.Field, records: int):
        self._field = field
        try:
            self._ends, self._values = _mapped(folder / _ENDS, "<i8"), _mapped(folder / _VALUES, "u1")
            whole = len(self._ends) == records and len(self._values) == (self._ends[-1] if records else 0)
        except (OSError, ValueError):
            whole = False
        if not whole:
            raise UserError(f"data.cache_dir: {folder.parent} is damaged; remove it, and the next run writes it again")

    def __getitem__(self, index: int):
        start = self._ends[index - 1] if index else 0
        return self._field.decode(self._values[start : self._ends[index]])

    def __iter__(self) -> Iterator:
        start = 0
        for first in range(0, len(self._ends), _ENDS_AT_A_TIME):
            for end in self._ends[first : first + _ENDS_AT_A_TIME].tolist():
                yield self._field.decode(self._values[start:end])
                start = end


def made_once(kind: str, fingerprint: str, cache: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The folder of what was made of a source, made now if no run did so before.

    One process makes it while others wait. It appears whole or not at all, also when that process is killed.

    Args:
      kind: what is kept there, the folder's name.
      fingerprint: of the source.
      cache: folder of caches; empty: the user's.
      make: writes the files into a folder.

    Raises:
      UserError: the cache cannot be written.
    """
    own = pathlib.Path(cache).expanduser() / "mae_pp_jax" if cache else pathlib.Path(storage.user_cache())
    root = own / kind
    folder = root / fingerprint
    if folder.is_dir():
        return folder
    storage.check_writable(root, "data.cache_dir", folder=True)
    with storage.writing(folder, "data.cache_dir"), contextlib.ExitStack() as held:
        root.mkdir(parents=True, exist_ok=True)
        held.enter_context(storage.lock(root / f".{fingerprint}.lock", f"the {kind} of this dataset"))
        if not folder.is_dir():
            for stale in root.glob(f"incomplete.{fingerprint}.*"):  # of a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
            half = pathlib.Path(tempfile.mkdtemp(prefix=f"incomplete.{fingerprint}.", dir=root))
            try:
                make(half)
                half.rename(folder)
            finally:
                shutil.rmtree(half, ignore_errors=True)
    return folder


def progress(steps: Iterable, label: str, records_of_step: int):
    """A bar over work that is done once for a dataset, and a line where there is no terminal."""
    log.info("%s, once for this dataset", label)
    return tqdm.tqdm(steps, desc=label, disable=not console.on_terminal(), unit_scale=records_of_step, unit=" records")


def _decoded(record: dict) -> dict:
    with contextlib.suppress(decode.Unreadable):  # stays encoded, and is reported as unreadable whenever it is read
        return record | {"image": images.pixels(record["image"])}
    return record


def _write(folder: pathlib.Path, kinds: Mapping, records: int, read: Callable[[int], dict], label: str) -> None:
    """Writes each field of all records into a folder of its own: the values one after another, and where each ends."""
    with contextlib.ExitStack() as held:
        pool = held.enter_context(concurrent.futures.ThreadPoolExecutor())
        files, ends = {}, dict.fromkeys(kinds, 0)
        for name in kinds:
            (folder / name).mkdir()
            files[name] = [held.enter_context((folder / name / file).open("wb")) for file in (_VALUES, _ENDS)]
        for first in progress(range(0, records, _AT_A_TIME), label, _AT_A_TIME):
            chunk = range(first, min(first + _AT_A_TIME, records))
            parts = [chunk[start : start + _OF_A_THREAD] for start in range(0, len(chunk), _OF_A_THREAD)]
            for record in itertools.chain.from_iterable(pool.map(lambda part: [read(i) for i in part], parts)):
                for name, field in kinds.items():
                    data = field.encode(record[name])
                    ends[name] += len(data)
                    files[name][0].write(data)
                    files[name][1].write(ends[name].to_bytes(8, "little"))


def _mapped(path: pathlib.Path, kind: str) -> np.ndarray:
    """A file as an array; an empty one cannot be mapped."""
    return np.asarray(np.memmap(path, kind, "r")) if path.stat().st_size else np.zeros(0, kind)
