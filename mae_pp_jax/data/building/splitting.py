"""Which split each image belongs to: by hash, so that it never changes, and families of images never part.

Everything here works on hashes (uint64), 8 bytes per image: a billion images fit into memory.
"""

import dataclasses
import re

import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import text
from mae_pp_jax.data.building.items import stable_hash

LOOKS = "looks"  # in --split_by: what `encoding.looks` says of the pixels, instead of a column
TWICE = 255  # in place of a split: the image was listed before
# A family with more images than this share of what a split should get stays in the first split: it would fill it.
_LARGE_SHARE, _LARGE_AT_LEAST = 0.1, 10


@dataclasses.dataclass(frozen=True)
class Splitting:
    """The splits and what keeps images together.

    Attributes:
      names: of the splits; the first takes large families.
      shares: of the images that each should get, summing to 1.
      own: whether the input's own splits are kept.
      by: columns, or `looks`; images that agree in any of them belong to one family.
      seed: of the choice.
    """

    names: tuple[str, ...]
    shares: tuple[float, ...]
    own: bool
    by: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def parse(cls, splits: str, by: str, seed: int) -> "Splitting":
        """Reads `train:0.9,test:0.1`; empty: these, but the input's own splits come first unless families are kept.

        Raises:
          UserError: another form; shares that do not sum to 1.
        """
        pairs = [pair.partition(":") for pair in (splits or "train:0.9,test:0.1").split(",")]
        names = tuple(name for name, _, _ in pairs)
        try:
            shares = tuple(float(share) for _, _, share in pairs)
        except ValueError:
            shares = ()
        wrong = len(set(names)) != len(names) or any(not re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)
        if wrong or not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise UserError(
                f"--splits: '{splits}' is not NAME:SHARE,… with shares that sum to 1, as train:0.9,test:0.1"
            )
        by = tuple(filter(None, by.split(",")))
        return cls(names, shares, own=not splits and not by, by=by, seed=seed)

    def describe(self) -> str:
        """One sentence for the dataset's description."""
        shares = ", ".join(f"{name} {share:g}" for name, share in zip(self.names, self.shares))
        if self.own:
            return f"Splits: the input's own; {shares} by hash of the name for images without one."
        if not self.by:
            return f"Splits: {shares}, by hash of the image's name, seed {self.seed}."
        return (
            f"Splits: {shares}, by hash of the image's family, seed {self.seed}. Images that agree in "
            f"{' or '.join(self.by)} are one family (texts without case, digits, punctuation and brackets); families "
            f"larger than {_LARGE_SHARE:.0%} of a split stay in {self.names[0]}."
        )


def base_text(value) -> str:
    """What a text has in common with its siblings: "Chevrons 2 (Mon 13:05)" and "chevrons_10" are both "chevrons"."""
    bare = re.sub(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}", " ", text.plain(value).casefold())
    return " ".join(re.findall(r"[^\W\d_]+", bare))


def family_hashes(splitting: Splitting, columns, looks: tuple[int, ...]) -> list[int]:
    """One hash for each thing that an image may share with its family; 0 for nothing."""
    out = []
    for name in splitting.by:
        if name == LOOKS:
            out += looks
        else:
            base = base_text(columns.get(name))
            out.append(stable_hash(f"{name}:{base}") if base else 0)
    return out


def hashes_of_family(splitting: Splitting) -> int:
    """How many `family_hashes` gives."""
    return sum(2 if name == LOOKS else 1 for name in splitting.by)


def assign(
    splitting: Splitting, keys: np.ndarray, families: np.ndarray, own: np.ndarray, names: list[str]
) -> np.ndarray:
    """The split of each image.

    Args:
      splitting: how.
      keys: uint64 [images], hash of each name.
      families: uint64 [things, images], see `family_hashes`.
      own: int [images], the input's own split as a place in `names`, -1 for none.
      names: all splits; those of `splitting` and the input's own ones.

    Returns:
      uint8 [images], a place in `names`, or `TWICE` for images that were listed before.
    """
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(keys), bool)
    again[first] = False
    places = np.array([names.index(name) for name in splitting.names], np.uint8)
    family = _components(families, len(keys)) if splitting.by else np.arange(len(keys))
    lowest = np.full(family.max(initial=0) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest, family, keys)
    where = _uniform(lowest, splitting.seed)
    chosen = np.minimum(np.searchsorted(np.cumsum(splitting.shares), where, side="right"), len(places) - 1)
    if splitting.by:
        sizes = np.bincount(family[~again], minlength=len(lowest))
        quota = np.array(splitting.shares)[chosen] * (~again).sum()
        chosen[sizes > np.maximum(_LARGE_SHARE * quota, _LARGE_AT_LEAST)] = 0
    out = places[chosen[family]]
    if splitting.own:
        out = np.where(own >= 0, own, out).astype(np.uint8)
    out[again] = TWICE
    return out


def _components(families: np.ndarray, images: int) -> np.ndarray:
    """Numbers the families: connected components of images that share any value, int [images]."""
    from scipy.sparse import coo_matrix  # slow to import, and only needed here
    from scipy.sparse.csgraph import connected_components

    rows, columns, used = [], [], images
    for values in families:
        known = np.flatnonzero(values)
        distinct, place = np.unique(values[known], return_inverse=True)
        rows.append(known)
        columns.append(used + place)
        used += len(distinct)
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(used, used))
    return connected_components(graph, directed=False)[1][:images]


def _uniform(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Numbers in [0, 1) from hashes: the finalizer of SplitMix64, for the lowest hash of a family is no even one."""
    x = hashes + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 & (2**64 - 1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) / 2.0**64
