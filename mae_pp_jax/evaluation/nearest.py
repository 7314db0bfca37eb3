"""Exact search for the most similar of many features, in blocks: memory does not grow with the product of two sets."""

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.ops import contrastive

BASE_BLOCK, QUERY_BLOCK = 16384, 1024  # features compared at a time: 64 MiB of similarities


def top_k(base: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k features that are most similar to each query, the most similar first; of equal ones the earlier one.

    Features that are not finite are never found, and queries that are not finite find nothing.

    Args:
      base: [features, width], of any length and floating type; they are normalised here. May be mapped from a file,
        which is read once from begin to end.
      queries: [queries, width], as well.
      k: how many, at most the number of features.

    Returns:
      (cosine similarities, float32 [queries, k]; indices in `base`, int32 [queries, k]). Where fewer than k are finite
      the last indices are -1, with similarity -inf; of a query that finds nothing all are -1, with NaN.

    Raises:
      ValueError: k is larger than the number of features, or the widths differ.
    """
    if k > len(base) or base.shape[1:] != queries.shape[1:]:
        raise ValueError(f"{k} nearest of {base.shape} to {queries.shape}")
    base_block, query_block = _block(len(base), BASE_BLOCK), _block(len(queries), QUERY_BLOCK)
    places = range(0, len(queries), query_block)
    best = [(jnp.full((query_block, k), -jnp.inf), jnp.full((query_block, k), -1, jnp.int32)) for _ in places]
    for start in range(0, len(base), base_block):
        part = base[start : start + base_block]
        near = jnp.asarray(_padded(part, base_block))
        for i, place in enumerate(places):
            own = _padded(queries[place : place + query_block], query_block)
            best[i] = _nearer(best[i], own, near, np.int32(start), np.int32(len(part)))
    if not best:
        return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
    return tuple(np.concatenate([np.asarray(x) for x in arrays])[: len(queries)] for arrays in zip(*best, strict=True))


def _block(count: int, most: int) -> int:
    """Size of the blocks that `count` features are cut into, a power of two where there is less than a whole block.

    All blocks have this size and the last is filled up, so that equal features meet in products of one shape and come
    out exactly equal.
    """
    return most if count >= most else max(8, 1 << (count - 1).bit_length()) if count else 8


def _padded(block: np.ndarray, size: int) -> np.ndarray:
    return np.pad(np.asarray(block, np.float32), ((0, size - len(block)), (0, 0)))


@jax.jit
def _nearer(best, queries, base, start, count):
    """The best so far and a block of features, of which `count` from index `start` on are real, as new best."""
    queries = contrastive.unit(queries)
    similar = jnp.matmul(queries, contrastive.unit(base).T, precision="highest")
    real = (jnp.arange(len(base)) < count) & jnp.isfinite(similar)
    found = jnp.where(real, jnp.arange(len(base), dtype=jnp.int32) + start, -1)
    most = best[0].shape[1]
    similar, chosen = jax.lax.top_k(jnp.where(real, similar, -jnp.inf), min(most, len(base)))
    new = similar, jnp.take_along_axis(found, chosen, 1)
    values, indices = (jnp.concatenate(pair, axis=1) for pair in zip(best, new, strict=True))
    sees = jnp.all(jnp.isfinite(queries), axis=1, keepdims=True)
    # Of equal ones the first: of an earlier block. What a blind query has found before is NaN too.
    values, chosen = jax.lax.top_k(jnp.where(sees, values, -jnp.inf), most)
    return jnp.where(sees, values, jnp.nan), jnp.take_along_axis(indices, chosen, 1)
