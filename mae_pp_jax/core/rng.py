"""Random numbers of an image: its key, folded with what the numbers are for.

A consumer folds in its own purpose where it draws, so that nobody upstream splits keys that nobody uses.
"""

import jax

FLIP, MASK, DROP_PATH = range(3)


def stream(keys: jax.Array, purpose: int) -> jax.Array:
    """Keys [batch] for one purpose."""
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys)
