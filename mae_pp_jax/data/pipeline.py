"""Batches as a pure function of (seed, step).

A run sees one endless stream of records (see orders.py). Position p of the stream fixes the record and its random
numbers; step s takes positions [s · global_batch, (s + 1) · global_batch). So a run continues at any step at once, and
its global batches are the same on any number of processes and threads.

What one record becomes is said by `load`, a function of the caller's; nothing here knows what a record holds.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping

import grain
import numpy as np

from mae_pp_jax.core.errors import RunStopped, UserError
from mae_pp_jax.data import orders
from mae_pp_jax.data.faults import Faults, Unreadable
from mae_pp_jax.data.fields import Source

Batch = dict[str, np.ndarray]
Example = Mapping[str, np.ndarray | int | float]  # name → value of one record
Spec = Mapping[str, tuple[tuple[int, ...], np.typing.DTypeLike]]  # name → (shape, dtype) in an example

_FOREVER = 2**62
# Records that a reader thread makes at a time: enough to spread Grain's cost for an element (about 50 µs) over many
# records, few enough to spread a batch over many threads.
_CHUNK = 32
_MOST_THREADS = 8  # by default; more than these wait for Python's lock
_MOST_IN_A_ROW = 100  # unreadable records, before it is clear that the storage is at fault
_PER_COUNT = 4  # random numbers that Philox gives per value of its counter


def train_batches(
    source: Source,
    order: orders.Order,
    load: Callable[[dict, np.ndarray], Example],
    spec: Spec,
    *,
    global_batch: int,
    seed: int,
    draws: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
    prefetch: int = 2,
    faults: Faults | None = None,
) -> Iterator[Batch]:
    """This process's part of the training batches from `start_step` on, without end.

    A record that cannot be read is replaced by the next one that can.

    Args:
      source: the records.
      order: which record stands at each position of the stream.
      load: makes an example of a record and of random numbers uniform in [0, 1), float64 [draws] or a few more. It
        raises `faults.Unreadable` for a damaged record, and `UserError` for one that lacks what is needed; the record's
        place is put before the message.
      spec: what `load` gives; the rest of it is left out.
      global_batch: records per step, over all processes.
      seed: of the random numbers.
      draws: random numbers per example.
      start_step: the first step given.
      process_index: which process this is; it gets the `process_index`-th part of each global batch.
      process_count: number of processes; must divide `global_batch`.
      threads: that read and load; none: cores + 1, at most 8.
      prefetch: batches prepared ahead.
      faults: collects the records that could not be read.

    Yields:
      The names of `spec`, each with a first dimension for the examples of this process; `record` int64 [batch], the
      index in the source; `unreadable` int32 [batch], 1 where that record stands for one that could not be read.
    """
    faults = faults or Faults()

    def fill(batch: Batch, place: int, start: int, stop: int) -> None:
        indices = order.at(np.arange(start, stop)).tolist()
        for place, index, numbers in zip(range(place, place + stop - start), indices, _draws(start, stop, seed, draws)):
            _put_readable(batch, place, source, index, lambda record: load(record, numbers), spec, faults)

    steps = (start_step, _FOREVER)
    return _batches(spec, fill, global_batch, steps, process_index, process_count, threads, prefetch)


def eval_batches(
    source: Source,
    load: Callable[[dict], Example],
    spec: Spec,
    *,
    global_batch: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
    prefetch: int = 2,
    max_unreadable: float = 0.0,
    faults: Faults | None = None,
) -> Iterator[Batch]:
    """This process's part of one pass over all records in order.

    A record that cannot be read is left out (zeros, and masked), for an average must hold no record twice.

    Args:
      source: the records.
      load: makes an example of a record; raises as that of `train_batches`.
      spec: what `load` gives; the rest of it is left out.
      global_batch: records per batch, over all processes.
      process_index: which process this is.
      process_count: number of processes; must divide `global_batch`. Each gets the same number of batches.
      threads: that read and load; none: cores + 1, at most 8.
      prefetch: batches prepared ahead.
      max_unreadable: share of unreadable records above which the evaluation stops.
      faults: collects the records that could not be read.

    Yields:
      As `train_batches`, and `mask` float32 [batch]: 1, or 0 for records left out and those that fill up the last
      batch.

    Raises:
      RunStopped: clearly more records than the share `max_unreadable` could not be read.
    """
    total = len(source)
    faults = faults or Faults()

    def fill(batch: Batch, place: int, start: int, stop: int) -> None:
        for place, index in enumerate((np.arange(start, stop) % total).tolist(), place):
            try:
                _put(batch, place, index, _example(source, index, load, faults), spec)
            except Unreadable as fault:
                faults.add(source.describe(index), str(fault), "left out of the evaluation")
                _put(batch, place, index, dict.fromkeys(spec, 0), spec, unreadable=1)

    unreadable, steps, local = 0, -(-total // global_batch), global_batch // process_count
    stream = _batches(spec, fill, global_batch, (0, steps), process_index, process_count, threads, prefetch)
    with contextlib.closing(stream) as batches:
        for step, batch in enumerate(batches):
            unreadable += int(batch["unreadable"].sum())
            faults.check(unreadable, -(-total // process_count), max_unreadable)
            positions = step * global_batch + process_index * local + np.arange(local)
            yield batch | {"mask": ((positions < total) & (batch["unreadable"] == 0)).astype(np.float32)}


def _batches(
    spec: Spec,
    fill: Callable[[Batch, int, int, int], None],
    global_batch: int,
    steps: tuple[int, int],
    process_index: int,
    process_count: int,
    threads: int | None,
    prefetch: int,
) -> Iterator[Batch]:
    """Iterates over steps, from the first of `steps` to the one before the second.

    Several readers work on a batch at once, each on some of its records: `fill(batch, place, start, stop)` puts the
    records at these positions of the stream into the arrays of a batch, the first at `place`.
    """
    if global_batch % process_count:
        raise UserError(f"global_batch: {global_batch} cannot be divided among {process_count} processes")
    local = global_batch // process_count
    shapes = {**spec, "record": ((), np.int64), "unreadable": ((), np.int32)}
    chunks = -(-local // _CHUNK)  # of each step
    under_way: dict[int, Batch] = {}
    lock = threading.Lock()

    def fill_chunk(index: int) -> int:
        step, chunk = divmod(index, chunks)
        with lock:
            if step not in under_way:
                under_way[step] = {name: np.empty((local, *shape), kind) for name, (shape, kind) in shapes.items()}
            batch = under_way[step]
        first = step * global_batch + process_index * local
        start, stop = chunk * local // chunks, (chunk + 1) * local // chunks
        fill(batch, start, first + start, first + stop)
        return step

    if threads is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = min(cores + 1, _MOST_THREADS)
    batches = (
        grain.MapDataset.range(steps[0] * chunks, min(steps[1] * chunks, _FOREVER))
        .map(fill_chunk)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch * chunks, threads)))
        .batch(chunks, batch_fn=lambda steps: under_way.pop(steps[0]))
    )
    if threads > 1:  # putting chunks together takes time that a training step would wait for
        batches = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1)
    return iter(batches)


def _put(batch: Batch, place: int, index: int, example: Example, spec: Spec, unreadable: int = 0) -> None:
    """Stores the example made of the record `index` of the source at `place`."""
    for name in spec:
        batch[name][place] = example[name]
    batch["record"][place] = index
    batch["unreadable"][place] = unreadable


def _put_readable(
    batch: Batch, place: int, source: Source, index: int, load: Callable, spec: Spec, faults: Faults
) -> None:
    """Stores what is made of the record `index`, or of the next one in the source that can be read, at `place`."""
    for ahead in range(min(_MOST_IN_A_ROW, len(source))):
        instead = (index + ahead) % len(source)
        try:
            _put(batch, place, instead, _example(source, instead, load, faults), spec, unreadable=int(ahead > 0))
            return
        except Unreadable as fault:
            faults.add(source.describe(instead), str(fault), "the next record is read in its place")
    raise RunStopped(
        f"{ahead + 1} records in a row cannot be read, from {source.describe(index)} to {source.describe(instead)}; "
        "restore or prepare the data again"
    )


def _example(source: Source, index: int, load: Callable[[dict], Example], faults: Faults) -> Example:
    record = source[index]
    try:
        example = load(record)
        faults.warn(lambda: source.describe(index))
        return example
    except UserError as error:
        raise UserError(f"data: {source.describe(index)} {error}") from error


def _draws(start: int, stop: int, seed: int, number: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for the positions [start, stop): float64 [stop - start, `number` or a few more].

    Philox is a function of (key, counter), so each position owns a whole number of values of the counter.
    """
    counts = -(-number // _PER_COUNT)
    key = np.random.SeedSequence([seed, orders.CROP]).generate_state(2, np.uint64)
    bits = np.random.Philox(key=key, counter=start * counts)
    return np.random.Generator(bits).random((stop - start, counts * _PER_COUNT))
