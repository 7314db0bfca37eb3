"""Which record stands at each position of the endless stream that a run trains on, as pure functions.

No order keeps a list of its positions: a position is computed when it is asked for, so that a run starts at any step at
once and a pass over billions of records costs no memory.
"""

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# What a stream of random numbers is for; each is seeded by [seed, purpose, …].
SHUFFLE, CROP, ROUND, MIX = range(4)
_ROUNDS = 5  # of the permutation
_UNIT = 2**24  # in which repeat factors are counted; 5 billion images of them stay far below 2**63
_BLOCK = 256  # records whose sum is kept: 94 MB for 3 billion
_BLOCKS_AT_ONCE = 16384
_POINTS_AT_ONCE = 4096
MIXED_AT_ONCE = 2**16  # positions over which the shares of a mixture are exact


class Order(Protocol):
    """A stream of records, pass after pass.

    Attributes:
      length: positions of one pass ("epoch").
    """

    length: int

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The records at `positions` (int64 [n]) of the stream, by their index in the source: int64 [n]."""


class Shuffled:
    """Every record once per pass, each pass in an order of its own.

    Args:
      records: number of records.
      seed: of the order.
      stream: distinguishes the orders of one run.
    """

    def __init__(self, records: int, seed: int, stream: int = 0):
        self.length, self._key = records, (seed, SHUFFLE, stream)

    def at(self, positions: np.ndarray) -> np.ndarray:
        return _each_round(positions, self.length, self._key, lambda _, places: places)


class Resampled:
    """Every record r times per pass on average, each pass in an order of its own.

    A pass lays the records' repeat factors r end to end on a line and puts points on it at equal distances of (just
    under) 1, from a start that is random for each pass: a record is read once for each point on its stretch. So it is
    read floor(r) or ceil(r) times, the latter with the fraction of r as probability, which is stochastic rounding; and
    every pass is of the same length, whatever was rounded up ("systematic sampling", Madow 1949). A last position is
    added where the factors do not add up to a whole number, which raises all of them by less than 1 / length.

    Memory: `codes` as they are given (they may be a memory map), 8 bytes for `_BLOCK` records, and the table.

    Args:
      codes: unsigned int [records], the row of each record in `factors`.
      factors: float [rows], repeat factors ≥ 0.
      seed: of rounding and order.
      stream: distinguishes the orders of one run.
    """

    def __init__(self, codes: np.ndarray, factors: np.ndarray, seed: int, stream: int = 0):
        self._codes, self._seed, self._stream = codes, seed, stream
        # Whole numbers add up exactly, on every machine.
        self._units = np.round(np.asarray(factors, np.float64) * _UNIT).astype(np.int64)
        blocks = -(-len(codes) // _BLOCK)
        sums = np.zeros(blocks + 1, np.int64)
        for first in range(0, blocks, _BLOCKS_AT_ONCE):
            units = self._units[codes[first * _BLOCK : (first + _BLOCKS_AT_ONCE) * _BLOCK]]
            some = np.add.reduceat(units, np.arange(0, len(units), _BLOCK))
            sums[first + 1 : first + 1 + len(some)] = some
        self._starts = np.cumsum(sums)  # where each block begins on the line, and where the line ends
        self._end = int(self._starts[-1])
        self.length = -(-self._end // _UNIT)

    def at(self, positions: np.ndarray) -> np.ndarray:
        return _each_round(positions, self.length, (self._seed, SHUFFLE, self._stream), self._records)

    def _records(self, number: int, places: np.ndarray) -> np.ndarray:
        """The records at `places` (int64 [n]) of pass `number` before shuffling: [n]."""
        start = int(np.random.default_rng(_words(self._seed, ROUND, self._stream, number)).integers(self._end))
        # Python's numbers: the product does not fit into 64 bits.
        points = np.array([(place * self._end + start) // self.length for place in places.tolist()], np.int64)
        some = np.array_split(points, -(-len(points) // _POINTS_AT_ONCE))
        return np.concatenate([self._find(part) for part in some])

    def _find(self, points: np.ndarray) -> np.ndarray:
        """The records on whose stretches of the line these points (int64 [n]) lie: [n]."""
        blocks = np.searchsorted(self._starts, points, side="right") - 1
        records = blocks[:, None] * _BLOCK + np.arange(_BLOCK)  # [n, block]
        units = self._units[self._codes[np.minimum(records, len(self._codes) - 1)]]
        before = np.cumsum(units, axis=1) <= (points - self._starts[blocks])[:, None]
        return records[:, 0] + before.sum(1)


class Mixed:
    """Several streams in one, each with its share of every 65,536 positions, at places drawn anew each time.

    Each goes through its own passes at its own pace. The records of the streams are numbered one after another.

    Args:
      parts: the streams.
      records: number of records that each draws from.
      weights: of each; they need not add up to 1.
      seed: of the places.
    """

    def __init__(self, parts: Sequence[Order], records: Sequence[int], weights: Sequence[float], seed: int):
        self.length = sum(part.length for part in parts)
        self._parts, self._key = parts, (seed, MIX, 0)
        self._first = np.cumsum([0, *records])
        self._shares = shares(weights)
        self._layout = functools.lru_cache(maxsize=4)(self._lay_out)  # the readers are at work on one or two rounds

    def at(self, positions: np.ndarray) -> np.ndarray:
        out = np.empty(len(positions), np.int64)
        rounds = positions // MIXED_AT_ONCE
        for number in np.unique(rounds).tolist():
            in_round = rounds == number
            parts, ranks = (table[positions[in_round] - number * MIXED_AT_ONCE] for table in self._layout(number))
            records = np.empty(len(parts), np.int64)
            for index in np.unique(parts).tolist():
                here = parts == index
                records[here] = self._first[index] + self._parts[index].at(number * self._shares[index] + ranks[here])
            out[in_round] = records
        return out

    def _lay_out(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(part, how many of that part come before) of each place of a round: int64 [places] each."""
        sorted_parts = np.repeat(np.arange(len(self._shares)), self._shares)
        rng = np.random.default_rng(_words(*self._key, number))
        parts = rng.permutation(sorted_parts)
        ranks = np.empty(MIXED_AT_ONCE, np.int64)
        starts = np.cumsum(self._shares) - self._shares
        ranks[np.argsort(parts, kind="stable")] = np.arange(MIXED_AT_ONCE) - starts[sorted_parts]
        return parts, ranks


def shares(weights: Sequence[float]) -> np.ndarray:
    """How many of every 65,536 positions each stream of a mixture has, by its weight: int64 [streams]."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * MIXED_AT_ONCE
    return np.diff(np.round(np.cumsum([0, *exact])).astype(np.int64))


def _words(seed: int, purpose: int, stream: int, number: int) -> np.random.SeedSequence:
    """Seeds the random numbers of one pass; a stream of its own adds a word of its own."""
    return np.random.SeedSequence([seed, purpose, number] + [stream] * (stream > 0))


def _each_round(positions: np.ndarray, length: int, key: tuple[int, int, int], records) -> np.ndarray:
    """Shuffles rounds of `length` places: int64 [n].

    Args:
      positions: int64 [n].
      length: places of one round.
      key: seed, purpose and stream of the random numbers.
      records: called with (round, places int64 [m]) for each round that is touched, gives int64 [m].
    """
    rounds = positions // length
    out = np.empty(len(positions), np.int64)
    for number in np.unique(rounds).tolist():
        here = rounds == number
        keys = _words(*key, number).generate_state(2 * _ROUNDS, np.uint64)
        places = permuted((positions[here] - number * length).astype(np.uint64), length, keys)
        out[here] = records(number, places.astype(np.int64))
    return out


def permuted(places: np.ndarray, total: int, keys: np.ndarray) -> np.ndarray:
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
