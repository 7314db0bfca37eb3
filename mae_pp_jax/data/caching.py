"""Keeping what is made of a dataset: decoded images in memory or on the local disk, statistics beside them."""

import concurrent.futures
import contextlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import tqdm

from mae_pp_jax.core import console, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import decode, images

log = logging.getLogger(__name__)

_AT_A_TIME = 256  # images decoded before they are written
_PIXELS, _RECORDS = "pixels.bin", "records.json"


class InMemory:
    """Keeps every record of another source, decoded, from its first use on."""

    def __init__(self, source):
        self._source = source
        self._records: list[dict | None] = [None] * len(source)
        self.class_names = source.class_names
        self.hashtag_names = source.hashtag_names
        self.has_tags = source.has_tags
        self.fingerprint = source.fingerprint
        self.labels = source.labels
        if self.hashtag_names:
            self.hashtags = source.hashtags
        if self.has_tags:
            self.tags = source.tags
        self.describe = source.describe

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record = self._records[index]
        if record is None:  # two threads may both come here; they store the same thing
            record = _decoded(self._source[index])
            self._records[index] = record
        return record


class OnDisk:
    """Another source, decoded once into a file on a local disk that all processes and later runs map into memory.

    Args:
      source: the records.
      cache: folder of caches; empty: the user's.

    Raises:
      UserError: the cache cannot be written, or was damaged.
    """

    def __init__(self, source, cache: str):
        folder = made_once("pixels", source.fingerprint, cache, lambda half: _write(source, half))
        path, records = folder / _PIXELS, folder / _RECORDS
        self._records = storage.read_json(records) if records.is_file() else []
        stored = path.stat().st_size if path.is_file() else -1
        if stored != sum(_length(*row[1:3]) for row in self._records) or len(self._records) != len(source):
            raise UserError(f"data.cache: {folder} is damaged; remove it, and the next run writes it again")
        self._pixels = np.memmap(path, np.uint8, "r") if stored else np.zeros(0, np.uint8)
        self.class_names = source.class_names
        self.hashtag_names = source.hashtag_names
        self.has_tags = source.has_tags
        self.fingerprint = source.fingerprint
        self.describe = source.describe

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        start, height, width, fields = self._records[index]
        data = np.asarray(self._pixels[start : start + _length(height, width)])
        record = {**fields, "image": data.reshape(height, width, 3) if height else data.tobytes()}
        if self.hashtag_names:
            record["hashtags"] = np.array(fields["hashtags"], np.int32)
        if self.has_tags:
            record["tags"] = tuple(fields["tags"])
        return record

    def labels(self) -> np.ndarray:
        if not self.class_names:
            raise UserError("data.name: the dataset has no labels")
        return np.array([fields["label"] for *_, fields in self._records], np.int32)

    def hashtags(self) -> Iterator[np.ndarray]:
        return (np.array(fields["hashtags"], np.int32) for *_, fields in self._records)

    def tags(self) -> Iterator[tuple[str, ...]]:
        return (tuple(fields["tags"]) for *_, fields in self._records)


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
    root = pathlib.Path(cache or os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mae_pp_jax" / kind
    folder = root / fingerprint
    if folder.is_dir():
        return folder
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
    with contextlib.suppress(decode.Unreadable):  # stays encoded, and unreadable to all who ask
        return record | {"image": images.pixels(record["image"])}
    return record


def _length(height: int, width: int) -> int:
    """Bytes of an image of this size; of a file that cannot be decoded, height 0, the width says it."""
    return 3 * height * width if height else width


def _write(source, folder: pathlib.Path) -> None:
    rows, start = [], 0
    label = f"decoding {len(source):,} images into {folder.parent}"
    with (folder / _PIXELS).open("wb") as file, concurrent.futures.ThreadPoolExecutor() as pool:
        for first in progress(range(0, len(source), _AT_A_TIME), label, _AT_A_TIME):
            chunk = range(first, min(first + _AT_A_TIME, len(source)))
            for record in pool.map(lambda index: _decoded(source[index]), chunk):
                image = record["image"]
                height, width = image.shape[:2] if isinstance(image, np.ndarray) else (0, len(image))
                file.write(image)
                fields = {name: np.asarray(value).tolist() for name, value in record.items() if name != "image"}
                rows.append([start, height, width, fields])
                start += _length(height, width)
    (folder / _RECORDS).write_text(json.dumps(rows))
