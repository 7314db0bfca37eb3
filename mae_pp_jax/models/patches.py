"""Images to patches and back, and the embedding of patches as tokens."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mae_pp_jax.models.attention import xavier_uniform


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of an image size as configs have it: one number for square images, or the pair."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def size_text(image_size: tuple[int, int]) -> str:
    """An image size in the words of the command line: "224", or "192x256" for 192 rows of 256 pixels."""
    height, width = image_size
    return str(height) if height == width else f"{height}x{width}"


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """Images [batch, height, width, 3] → [batch, patches, patch · patch · 3], pixels in (row, column, rgb) order."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    tiles = images.reshape(batch, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(patches: jax.Array, patch: int, grid: tuple[int, int]) -> jax.Array:
    """The inverse of `patchify` for a grid of (rows, columns) patches."""
    rows, columns = grid
    tiles = patches.reshape(patches.shape[0], rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(patches.shape[0], rows * patch, columns * patch, -1)


class PatchEmbed(nnx.Linear):
    """One linear map of the pixels of each patch: `kernel` [patch · patch · 3, width] and `bias` [width].

    Args:
      patch: side of a patch in pixels.
      width: channels of a token.
      dtype: compute dtype.
      rngs: keys for initialisation.
    """

    def __init__(self, patch: int, width: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        super().__init__(patch * patch * 3, width, kernel_init=xavier_uniform, dtype=dtype, rngs=rngs)
        self.patch = patch

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images [batch, height, width, 3] → tokens [batch, patches, width], in row-major order."""
        return super().__call__(patchify(images, self.patch))
