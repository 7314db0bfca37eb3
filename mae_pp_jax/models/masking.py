"""Choosing the visible patches of each image and putting them back, by comparison and matmul.

Sort, gather and scatter are slow on TPUs and hard to partition over devices, so the rank of each patch is counted and
patches are moved by a product with one-hot rows. The products run at the highest precision, so that they copy exactly.
"""

import jax
import jax.numpy as jnp

from mae_pp_jax.core import rng


def draw(keys: jax.Array, patches: int) -> jax.Array:
    """Noise [batch, patches] for `select_visible`, by the keys [batch] of the images."""
    return jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(rng.stream(keys, "mask"))


def select_visible(noise: jax.Array, visible: int) -> tuple[jax.Array, jax.Array]:
    """Keeps the patches of smallest noise, in the order of their noise.

    Args:
      noise: [batch, patches]. Among equal values the patch of lower index comes first, as in a stable sort.
      visible: how many patches of each image stay visible.

    Returns:
      select: [batch, visible, patches] float32, one-hot rows: row v picks the patch of v-th smallest noise.
      mask: [batch, patches] float32, 1 for masked patches, 0 for visible ones.
    """
    patches = noise.shape[1]
    index = jnp.arange(patches)
    mine, other = noise[:, :, None], noise[:, None, :]
    before = (other < mine) | ((other == mine) & (index < index[:, None]))
    rank = jnp.sum(before, axis=2)
    select = rank[:, None, :] == jnp.arange(visible)[:, None]
    return select.astype(jnp.float32), (rank >= visible).astype(jnp.float32)


def gather_visible(select: jax.Array, patches: jax.Array) -> jax.Array:
    """The visible ones [batch, visible, width] of all patches [batch, patches, width]."""
    select = select.astype(patches.dtype)
    return jnp.einsum("bvp,bpw->bvw", select, patches, precision=jax.lax.Precision.HIGHEST)


def restore_patches(select: jax.Array, visible: jax.Array, mask: jax.Array, mask_token: jax.Array) -> jax.Array:
    """All patches in their own places, the masked ones filled with the mask token.

    Args:
      select: [batch, visible, patches], from `select_visible`.
      visible: [batch, visible, width].
      mask: [batch, patches], from `select_visible`.
      mask_token: [1, width].

    Returns:
      [batch, patches, width], in the dtype of `visible`.
    """
    select, mask, mask_token = (a.astype(visible.dtype) for a in (select, mask, mask_token))
    placed = jnp.einsum("bvp,bvw->bpw", select, visible, precision=jax.lax.Precision.HIGHEST)
    return placed + mask[:, :, None] * mask_token
