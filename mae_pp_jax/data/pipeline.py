"""Batches as a pure function of (seed, step).

A run sees one endless stream of records (see orders.py). Position p of the stream fixes the record and the random
numbers of its crop; step s takes positions [s · global_batch, (s + 1) · global_batch). So a run continues at any step
at once, and its global batches are the same on any number of processes and threads.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator

import grain
import numpy as np

from mae_pp_jax.core.errors import RunStopped, UserError
from mae_pp_jax.data import decode, fields, images, orders, simulated_hashtags
from mae_pp_jax.data.faults import Faults
from mae_pp_jax.data.fields import Source
from mae_pp_jax.data.source import DataConfig

_FOREVER = 2**62
# Records that a reader thread makes at a time: enough to spread Grain's cost for an element (about 50 µs) over many
# records, few enough to spread a batch over many threads.
_CHUNK = 32
_MOST_THREADS = 8  # by default; more than these wait for Python's lock
_MOST_IN_A_ROW = 100  # unreadable records, before it is clear that the storage is at fault


def train_batches(
    source: Source,
    config: DataConfig,
    *,
    global_batch: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    order: orders.Order | None = None,
    labelled: bool = False,
    faults: Faults | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of the training batches from `start_step` on, without end.

    A record whose image cannot be read is replaced by the next one that can.

    Args:
      source: the records.
      config: crop, reading threads, tags kept.
      global_batch: records a step, over all processes.
      seed: of the order and the crops.
      start_step: the first step given.
      process_index: which process this is; it gets the `process_index`-th part of each global batch.
      process_count: number of processes; must divide `global_batch`.
      order: which record stands at each position of the stream; by default each once an epoch, shuffled by `seed`.
      labelled: whether every record must have a label; else those without have -1.
      faults: collects the records that could not be read.

    Yields:
      `image` uint8 [batch, size, size, 3]; `label` int32 [batch] if the source has labels; `hashtags` int32
      [batch, max_tags], padded with -1, if it has hashtags; `record` int64 [batch], the index in the source;
      `unreadable` int32 [batch], 1 where that record stands for one that could not be read. `batch` is the local one.
    """
    order = order or orders.Shuffled(len(source), seed)
    faults = faults or Faults()

    def load(batch: _Batch, place: int, start: int, stop: int) -> None:
        indices = order.at(np.arange(start, stop)).tolist()
        for place, index, draws in zip(range(place, place + stop - start), indices, _draws(start, stop, seed)):
            _fill_readable(batch, place, source, index, lambda image: _train_crop(image, config, draws), faults)

    make = functools.partial(_Batch, source, config, labelled)
    return _batches(make, load, config, global_batch, start_step, _FOREVER, process_index, process_count)


def eval_batches(
    source: Source,
    config: DataConfig,
    *,
    global_batch: int,
    process_index: int = 0,
    process_count: int = 1,
    labelled: bool = False,
    faults: Faults | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of one pass over all records in order, with centre crops.

    A record whose image cannot be read is left out (black, and masked), for an average must hold no record twice.

    Args:
      source: the records.
      config: image size, reading threads, tags kept.
      global_batch: records a batch, over all processes.
      process_index: which process this is.
      process_count: number of processes; must divide `global_batch`. Each gets the same number of batches.
      labelled: whether every record must have a label; else those without have -1.
      faults: collects the records that could not be read.

    Yields:
      As `train_batches`, and `mask` float32 [batch]: 1, or 0 for records left out and those that fill up the last
      batch.

    Raises:
      RunStopped: clearly more records than the share `config.max_unreadable` could not be read.
    """
    total = len(source)
    faults = faults or Faults()

    def load(batch: _Batch, place: int, start: int, stop: int) -> None:
        for place, index in enumerate((np.arange(start, stop) % total).tolist(), place):
            record = source[index]
            try:
                batch.put(place, index, record, _eval_crop(record["image"], config))
            except decode.Unreadable as fault:
                faults.add(source.describe(index), str(fault), "left out of the evaluation")
                batch.put(place, index, record, np.uint8(0), unreadable=1)

    unreadable, steps, local = 0, -(-total // global_batch), global_batch // process_count
    make = functools.partial(_Batch, source, config, labelled)
    stream = _batches(make, load, config, global_batch, 0, steps, process_index, process_count)
    with contextlib.closing(stream) as batches:
        for step, batch in enumerate(batches):
            unreadable += int(batch["unreadable"].sum())
            faults.check(unreadable, -(-total // process_count), config.max_unreadable)
            positions = step * global_batch + process_index * local + np.arange(local)
            yield batch | {"mask": ((positions < total) & (batch["unreadable"] == 0)).astype(np.float32)}


def _batches(
    make: Callable[[int], "_Batch"],
    load: Callable[["_Batch", int, int, int], None],
    config: DataConfig,
    global_batch: int,
    start_step: int,
    stop_step: int,
    process_index: int,
    process_count: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over steps.

    Several readers work on a batch at once, each on some of its records: `make(count)` gives room for a batch, and
    `load(batch, place, start, stop)` puts the records at these positions of the stream there, the first at `place`.
    """
    if global_batch % process_count:
        raise UserError(f"global_batch: {global_batch} cannot be divided among {process_count} processes")
    local = global_batch // process_count
    chunks = -(-local // _CHUNK)  # of each step
    under_way: dict[int, _Batch] = {}
    lock = threading.Lock()

    def load_chunk(index: int) -> int:
        step, chunk = divmod(index, chunks)
        with lock:
            batch = under_way.get(step) or under_way.setdefault(step, make(local))
        first = step * global_batch + process_index * local
        start, stop = chunk * local // chunks, (chunk + 1) * local // chunks
        load(batch, start, first + start, first + stop)
        return step

    stop = min(stop_step * chunks, _FOREVER)
    threads = config.threads
    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = min(cores + 1, _MOST_THREADS)
    ahead = max(config.prefetch * chunks, threads)
    batches = (
        grain.MapDataset.range(start_step * chunks, stop)
        .map(load_chunk)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
        .batch(chunks, batch_fn=lambda steps: under_way.pop(steps[0]).arrays())
    )
    if threads > 1:  # padding hashtags takes time that a training step would wait for
        batches = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1)
    return iter(batches)


class _Batch:
    """The arrays of some records, filled in one by one."""

    def __init__(self, source: Source, config: DataConfig, labelled: bool, count: int):
        self._source, self._max_tags, self._labelled = source, config.max_tags, labelled
        self._arrays = {
            "image": np.empty((count, config.image_size, config.image_size, 3), np.uint8),
            "record": np.empty(count, np.int64),
            "unreadable": np.empty(count, np.int32),
        }
        if "label" in source.fields:
            self._arrays["label"] = np.empty(count, np.int32)
        self._tags = [np.zeros(0, np.int32)] * count if fields.names(source, "hashtags") else None

    def put(self, place: int, index: int, record: dict, image: np.ndarray, unreadable: int = 0) -> None:
        """Stores the record `index` of the source, its image cropped to [size, size, 3], at `place`."""
        self._arrays["image"][place] = image
        self._arrays["record"][place] = index
        self._arrays["unreadable"][place] = unreadable
        if "label" in self._source.fields:
            if self._labelled and record["label"] < 0:
                where = self._source.describe(index)
                raise UserError(f"data: {where} has no label; choose a split in which every image has one")
            self._arrays["label"][place] = record["label"]
        if self._tags is not None:
            self._tags[place] = record["hashtags"]

    def arrays(self) -> dict[str, np.ndarray]:
        if self._tags is None:
            return self._arrays
        return self._arrays | {"hashtags": simulated_hashtags.pad(self._tags, self._max_tags)}


def _fill_readable(batch: _Batch, place: int, source: Source, index: int, crop: Callable, faults: Faults) -> None:
    """Stores the record `index`, or the next one in the source that can be read, at `place`."""
    for ahead in range(min(_MOST_IN_A_ROW, len(source))):
        instead = (index + ahead) % len(source)
        record = source[instead]
        try:
            batch.put(place, instead, record, crop(record["image"]), unreadable=int(ahead > 0))
            return
        except decode.Unreadable as fault:
            faults.add(source.describe(instead), str(fault), "the next record is read in its place")
    raise RunStopped(
        f"{ahead + 1} images in a row cannot be read, from {source.describe(index)} to {source.describe(instead)}; "
        "restore or prepare the data again"
    )


def _train_crop(image: np.ndarray, config: DataConfig, draws: np.ndarray) -> np.ndarray:
    if config.crop == "random_resized":
        return images.random_resized_crop(image, config.image_size, draws, config.crop_scale, config.crop_ratio)
    if config.crop == "shift":
        return images.shift_crop(image, config.image_size, draws, config.shift)
    return _eval_crop(image, config)


def _eval_crop(image: bytes | np.ndarray, config: DataConfig) -> np.ndarray:
    if config.eval_crop == "squeeze":
        return images.squeeze(image, config.image_size)
    return images.center_crop(image, config.image_size, config.eval_share)


def _draws(start: int, stop: int, seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for the crops at positions [start, stop): float64 [stop - start, CROP_DRAWS].

    Philox is a function of (key, counter) that gives 4 numbers a count, so each position owns CROP_DRAWS / 4 counts.
    """
    key = np.random.SeedSequence([seed, orders.CROP]).generate_state(2, np.uint64)
    bits = np.random.Philox(key=key, counter=start * images.CROP_DRAWS // 4)
    return np.random.Generator(bits).random((stop - start, images.CROP_DRAWS))
