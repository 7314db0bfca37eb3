"""Repeat factors that show images with rare hashtags more often (Mahajan et al. 2018; SWAG; used for WSP).

The factor of an image depends on the rarest of its hashtags alone. So two numbers are counted once for a dataset, how
many images carry each hashtag and which one is the rarest of each image, and kept on disk: 2 bytes per image.
"""

import dataclasses
import itertools
import logging
import pathlib
import tempfile

import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import caching, fields, orders

log = logging.getLogger(__name__)
_CHUNK = 2**20  # records whose hashtags are held as lists at a time


@dataclasses.dataclass(frozen=True)
class TagStatistics:
    """How common hashtags are in a dataset.

    Attributes:
      counts: int64 [hashtags], images that carry each.
      rarest: unsigned int [records], the rarest hashtag of each image, or the number of hashtags if it has none; a
        memory map.
    """

    counts: np.ndarray
    rarest: np.ndarray


def resampled(source, form: str, threshold: float, length: float, seed: int, cache: str, stream: int = 0):
    """The order in which images with rare hashtags come more often.

    Args:
      source: the records, with hashtags.
      form: of the factor, as `repeat_factors` takes it.
      threshold: likewise.
      length: likewise.
      seed: of rounding and order.
      cache: folder for the statistics; empty: the user's cache.
      stream: distinguishes the orders of one run.

    Raises:
      UserError: the source has no hashtags, or the cache cannot be written.
    """
    if not fields.names(source, "hashtags"):
        raise UserError("data.resample: needs a dataset with hashtags; use data.resample=none")
    statistics = tag_statistics(source, cache)
    factors = repeat_factors(statistics, form, threshold, length)
    order = orders.Resampled(statistics.rarest, factors, seed, stream)
    log.info(
        "resampling (%s): %s records are read %s times per pass, one of them at most %.1f times",
        form,
        f"{len(source):,}",
        f"{order.length:,}",
        factors[:-1][statistics.counts > 0].max(initial=factors[-1]),
    )
    return order


def repeat_factors(statistics: TagStatistics, form: str, threshold: float, length: float) -> np.ndarray:
    """How often an image is read per pass, by the rarest of its hashtags: float64 [hashtags + 1].

    With f the share of images that carry a hashtag, the maximum over an image's hashtags of
    `sqrt`: max(1, sqrt(threshold / f)), and 1 without hashtags (Mahajan et al. 2018, section 2.2; the same form as
    Detectron2's RepeatFactorTrainingSampler);
    `swag`: 1 / sqrt(f), scaled so that a pass has `length` times as many positions as there are images; common images
    are then left out of some passes, and those without hashtags of all (Singh et al. 2022).

    Args:
      statistics: of the dataset.
      form: `sqrt` or `swag`.
      threshold: t, for `sqrt`.
      length: for `swag`.
    """
    records = len(statistics.rarest)
    share = np.maximum(statistics.counts, 1) / records  # a hashtag that no image carries is nobody's rarest
    if form == "sqrt":
        return np.append(np.maximum(1.0, np.sqrt(threshold / share)), 1.0)
    weights = np.append(1 / np.sqrt(share), 0.0)
    images = np.zeros(len(weights), np.int64)
    for start in range(0, records, _CHUNK):
        images += np.bincount(statistics.rarest[start : start + _CHUNK], minlength=len(weights))
    return weights * (length * records / (weights @ images))


def tag_statistics(source, cache: str = "") -> TagStatistics:
    """Reads the hashtags of all records once; later runs find the result in `cache`, by the fingerprint of the source.

    Raises:
      UserError: the cache cannot be written.
    """
    folder = caching.made_once("hashtags", source.fingerprint, cache, lambda half: _count(source, half))
    return TagStatistics(np.load(folder / "counts.npy"), np.load(folder / "rarest.npy", mmap_mode="r"))


def _count(source, folder: pathlib.Path) -> None:
    """Writes counts.npy and rarest.npy; the hashtags stand in a file meanwhile, so that they need not fit in memory."""
    hashtags, records = len(fields.names(source, "hashtags")), len(source)
    counts = np.zeros(hashtags, np.int64)
    lengths = []
    with tempfile.TemporaryFile(dir=folder) as file:
        stream = source.column("hashtags")
        for start in caching.progress(
            range(0, records, _CHUNK), f"counting the hashtags of {records:,} records", _CHUNK
        ):
            tags = [np.unique(ids) for ids in itertools.islice(stream, min(_CHUNK, records - start))]
            joined = np.concatenate(tags).astype(np.uint32)
            counts += np.bincount(joined, minlength=hashtags)
            file.write(joined.tobytes())
            lengths.append(np.array([len(t) for t in tags], np.int64))
        file.seek(0)
        kind = np.min_scalar_type(hashtags)
        rarest = np.lib.format.open_memmap(folder / "rarest.npy", "w+", kind, (records,))
        # Rank 0 is the rarest; the rank of "none" is last.
        by_rank = np.append(np.lexsort((np.arange(hashtags), counts)), hashtags)
        rank = np.empty(hashtags + 1, np.int64)
        rank[by_rank] = np.arange(hashtags + 1)
        for index, number in enumerate(lengths):
            joined = np.frombuffer(file.read(4 * int(number.sum())), np.uint32)
            best = np.full(len(number), hashtags)
            np.minimum.at(best, np.repeat(np.arange(len(number)), number), rank[joined])
            rarest[index * _CHUNK : index * _CHUNK + len(number)] = by_rank[best]
        rarest.flush()
        np.save(folder / "counts.npy", counts)
