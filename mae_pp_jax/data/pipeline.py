"""Batches as a pure function of (seed, step).

A run sees one endless stream of records: epoch after epoch, each in an order of its own. Position p of the stream
fixes the record and the random numbers of its crop; step s takes positions [s · global_batch, (s + 1) · global_batch).
So a run continues at any step at once, and its global batches are the same on any number of processes and threads.
"""

from collections.abc import Callable, Iterator

import grain
import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import hashtags, images
from mae_pp_jax.data.source import DataConfig, Source

_FOREVER = 2**62
# Records that a reader thread makes at a time: enough to spread Grain's cost for an element (about 50 µs) over many
# records, few enough to spread a batch over many threads.
_CHUNK = 32
_ORDER, _CROP = 0, 1  # what a random stream is for
_ROUNDS = 5  # of the permutation


def train_batches(
    source: Source,
    config: DataConfig,
    *,
    global_batch: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of the training batches from `start_step` on, without end.

    Args:
      source: the records.
      config: crop, reading threads, tags kept.
      global_batch: records a step, over all processes.
      seed: of the order and the crops.
      start_step: the first step given.
      process_index: which process this is; it gets the `process_index`-th part of each global batch.
      process_count: number of processes; must divide `global_batch`.

    Yields:
      `image` uint8 [batch, size, size, 3]; `label` int32 [batch] if the source has labels; `hashtags` int32
      [batch, max_tags], padded with -1, if it has hashtags; `record` int64 [batch], the index in the source. `batch`
      is the local one.
    """

    def load(start: int, stop: int) -> dict[str, np.ndarray]:
        records = _shuffled(start, stop, len(source), seed)
        draws = _draws(start, stop, seed)
        return _load(source, config, records, lambda image, i: _train_crop(image, config, draws[i]))

    return _batches(load, config, global_batch, start_step, _FOREVER, process_index, process_count)


def eval_batches(
    source: Source, config: DataConfig, *, global_batch: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """This process's part of one pass over all records in order, with centre crops.

    Args:
      source: the records.
      config: image size, reading threads, tags kept.
      global_batch: records a batch, over all processes.
      process_index: which process this is.
      process_count: number of processes; must divide `global_batch`. Each gets the same number of batches.

    Yields:
      As `train_batches`, and `mask` float32 [batch]: 1, or 0 for the records that fill up the last batch.
    """
    total = len(source)

    def load(start: int, stop: int) -> dict[str, np.ndarray]:
        positions = np.arange(start, stop)
        batch = _load(source, config, positions % total, lambda image, i: images.center_crop(image, config.image_size))
        return batch | {"mask": (positions < total).astype(np.float32)}

    return _batches(load, config, global_batch, 0, -(-total // global_batch), process_index, process_count)


def records_of_step(source: Source, *, global_batch: int, seed: int, step: int) -> np.ndarray:
    """The records of a training step by their index in the source, int64 [global_batch], without reading them."""
    return _shuffled(step * global_batch, (step + 1) * global_batch, len(source), seed)


def _batches(
    load: Callable[[int, int], dict],
    config: DataConfig,
    global_batch: int,
    start_step: int,
    stop_step: int,
    process_index: int,
    process_count: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over steps; `load(start, stop)` makes the records at these positions of the stream."""
    if global_batch % process_count:
        raise UserError(f"global_batch: {global_batch} cannot be divided among {process_count} processes")
    local = global_batch // process_count
    chunks = -(-local // _CHUNK)  # of each step

    def load_chunk(index: int) -> dict[str, np.ndarray]:
        step, chunk = divmod(index, chunks)
        first = step * global_batch + process_index * local
        return load(first + chunk * local // chunks, first + (chunk + 1) * local // chunks)

    stop = min(stop_step * chunks, _FOREVER)
    ahead = max(config.prefetch * chunks, config.threads)
    return iter(
        grain.MapDataset.range(start_step * chunks, stop)
        .map(load_chunk)
        .to_iter_dataset(grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=ahead))
        .batch(chunks, batch_fn=lambda parts: {k: np.concatenate([part[k] for part in parts]) for k in parts[0]})
    )


def _load(source: Source, config: DataConfig, records: np.ndarray, crop: Callable) -> dict[str, np.ndarray]:
    """Reads `records` (int64 [batch]) and applies `crop(image, place in the batch)`."""
    size, count = config.image_size, len(records)
    batch = {"image": np.empty((count, size, size, 3), np.uint8)}
    if source.class_names:
        batch["label"] = np.empty(count, np.int32)
    tags = []
    for i, index in enumerate(records.tolist()):
        record = source[index]
        batch["image"][i] = crop(record["image"], i)
        if source.class_names:
            if record["label"] < 0:
                raise UserError(f"data: {source.describe(index)} has no label; choose a split that is labelled")
            batch["label"][i] = record["label"]
        if source.hashtag_names:
            tags.append(record["hashtags"])
    if source.hashtag_names:
        batch["hashtags"] = hashtags.pad(tags, config.max_tags)
    return batch | {"record": records}


def _train_crop(image: np.ndarray, config: DataConfig, draws: np.ndarray) -> np.ndarray:
    if config.crop == "random_resized":
        return images.random_resized_crop(image, config.image_size, draws, config.crop_scale, config.crop_ratio)
    if config.crop == "shift":
        return images.shift_crop(image, config.image_size, draws, config.shift)
    return images.center_crop(image, config.image_size)


def _shuffled(start: int, stop: int, total: int, seed: int) -> np.ndarray:
    """The records at positions [start, stop) of the stream: int64 [stop - start]."""
    parts = []
    for epoch in range(start // total, -(-stop // total)):
        places = np.arange(max(start - epoch * total, 0), min(stop - epoch * total, total), dtype=np.uint64)
        keys = np.random.SeedSequence([seed, _ORDER, epoch]).generate_state(2 * _ROUNDS, np.uint64)
        parts.append(_permuted(places, total, keys))
    return np.concatenate(parts).astype(np.int64)


def _permuted(places: np.ndarray, total: int, keys: np.ndarray) -> np.ndarray:
    """A keyed permutation of the numbers below `total`, at `places` (uint64), without a list of all of them.

    Each round is invertible on numbers of `bits` bits: multiply by an odd number, add, fold the high bits into the
    low ones. Applying all again to what falls outside [0, total) until nothing does ("cycle walking") keeps it a
    permutation of exactly these numbers.
    """
    bits = max(int(total - 1).bit_length(), 1)
    mask, fold = np.uint64(2**bits - 1), np.uint64((bits + 1) // 2)
    multipliers, addends = keys[:_ROUNDS] | np.uint64(1), keys[_ROUNDS:]
    out, todo = places.copy(), np.arange(len(places))
    while len(todo):
        x = out[todo]
        for multiplier, addend in zip(multipliers, addends):
            x = (x * multiplier + addend) & mask
            x ^= x >> fold
        out[todo] = x
        todo = todo[x >= total]
    return out


def _draws(start: int, stop: int, seed: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for the crops at positions [start, stop): float64 [stop - start, CROP_DRAWS].

    Philox is a function of (key, counter) that gives 4 numbers a count, so each position owns CROP_DRAWS / 4 counts.
    """
    key = np.random.SeedSequence([seed, _CROP]).generate_state(2, np.uint64)
    bits = np.random.Philox(key=key, counter=start * images.CROP_DRAWS // 4)
    return np.random.Generator(bits).random((stop - start, images.CROP_DRAWS))
