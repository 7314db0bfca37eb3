"""Position tables: the fixed sin-cos one of MAE, and resizing of a table to another grid of patches.

Both run on the host in NumPy float64: they are needed once, when a model is built or handed over.
"""

import math

import numpy as np

CUBIC = -0.75  # the coefficient of bicubic interpolation that PyTorch uses; jax.image.resize has -0.5


def sincos_2d(width: int, grid_h: int, grid_w: int, cls: bool) -> np.ndarray:
    """The 2-D sin-cos position table of MAE.

    The first half of the channels encodes the column, the second half the row; in each half a block of sines is
    followed by a block of cosines, with frequencies 10000^(-k / (width/4)) for k = 0 .. width/4 - 1.

    Args:
      width: channels, divisible by 4.
      grid_h: rows of patches.
      grid_w: columns of patches.
      cls: whether a first row, all zeros, stands for the class token.

    Returns:
      [tokens, width] float32, patches in row-major order after the class token.
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))

    def encode(coordinate):
        angles = np.outer(coordinate, frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    rows, columns = np.divmod(np.arange(grid_h * grid_w), grid_w)
    table = np.concatenate([encode(columns), encode(rows)], axis=1)
    return np.concatenate([np.zeros((int(cls), width)), table]).astype(np.float32)


def resize(
    table: np.ndarray, new_grid: tuple[int, int], has_cls: bool, old_grid: tuple[int, int] | None = None
) -> np.ndarray:
    """A position table for another grid of patches, by bicubic interpolation as MAE and ViTDet do it.

    Equals PyTorch's `interpolate(mode="bicubic", align_corners=False, antialias=False)`. The row of the class token is
    copied.

    Args:
      table: [tokens, width].
      new_grid: rows and columns of patches wanted.
      has_cls: whether the first row belongs to the class token.
      old_grid: rows and columns of patches of `table`; a square when not given.

    Returns:
      [new tokens, width], in the dtype of `table`.

    Raises:
      ValueError: the patches of `table` do not form `old_grid`.
    """
    cls, patches = np.split(np.asarray(table), [int(has_cls)])
    side = math.isqrt(len(patches))
    old_h, old_w = old_grid or (side, side)
    if old_h * old_w != len(patches):
        raise ValueError(f"a position table of {len(patches)} patches is no grid of {old_h} × {old_w}")
    grid = patches.astype(np.float64).reshape(old_h, old_w, -1)
    rows, columns = _bicubic(old_h, new_grid[0]), _bicubic(old_w, new_grid[1])
    resized = np.einsum("yh,xw,hwc->yxc", rows, columns, grid, optimize=True).reshape(-1, patches.shape[1])
    return np.concatenate([cls, resized.astype(cls.dtype)])


def _bicubic(old: int, new: int) -> np.ndarray:
    """Interpolation weights [new, old] along one axis; samples beyond the border repeat the border's."""
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centers).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(centers - (first + tap))
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
        source = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), source), np.where(distance <= 1, near, far))
    return weights
