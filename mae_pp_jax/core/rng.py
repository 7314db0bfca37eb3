"""Random numbers of an example: its key, folded with what the numbers are for.

A consumer folds in its own purpose where it draws, so that nobody upstream splits keys that nobody uses.
"""

import zlib

import jax


def stream(keys: jax.Array, purpose: str) -> jax.Array:
    """Keys [batch] for one purpose, such as "drop_path"; streams of different names are independent."""
    number = zlib.crc32(purpose.encode())  # stable over processes and versions, unlike hash()
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
