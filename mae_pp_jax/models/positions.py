"""Position tables: the fixed sin-cos one of MAE, and resizing of a table to another grid of patches.

Both run on the host in NumPy float64: they are needed once, when a model is built or handed over.
"""

import math

import numpy as np

# How each code base resizes a table bicubically: arguments of PyTorch's `interpolate` and the cubic's coefficient.
METHODS = {
    "mae": -0.75,  # facebookresearch/mae, ViTDet, Hugging Face: align_corners=False, antialias=False
    "timm": -0.5,  # timm's resample_abs_pos_embed: antialias=True (which also enlarges with another cubic)
    "swag": -0.75,  # SWAG, torchvision: align_corners=True
}


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
    table: np.ndarray,
    new_grid: tuple[int, int],
    has_cls: bool,
    old_grid: tuple[int, int] | None = None,
    method: str = "mae",
) -> np.ndarray:
    """A position table for another grid of patches, by bicubic interpolation. The class token's row is copied.

    Args:
      table: [tokens, width].
      new_grid: rows and columns of patches wanted.
      has_cls: whether the first row belongs to the class token.
      old_grid: rows and columns of patches of `table`; a square when not given.
      method: whose interpolation, a name of `METHODS`.

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
    if (old_h, old_w) == tuple(new_grid):
        return np.asarray(table)
    grid = patches.astype(np.float64).reshape(old_h, old_w, -1)
    rows, columns = _bicubic(old_h, new_grid[0], method), _bicubic(old_w, new_grid[1], method)
    resized = np.einsum("yh,xw,hwc->yxc", rows, columns, grid, optimize=True).reshape(-1, patches.shape[1])
    return np.concatenate([cls, resized.astype(cls.dtype)])


def set_class_row(table: np.ndarray, had: bool, has: bool) -> np.ndarray:
    """A table with or without a first row for the class token; a row that is new is zero, as in the sin-cos table."""
    if had == has:
        return table
    return table[1:] if had else np.concatenate([np.zeros_like(table[:1]), table])


def _bicubic(old: int, new: int, method: str) -> np.ndarray:
    """Interpolation weights [new, old] along one axis.

    Samples beyond the border repeat the border's; with antialiasing they are left out, and when shrinking the cubic is
    as wide as the new samples are apart.
    """
    if method == "timm":
        stretch = max(old / new, 1.0)
        distance = np.abs((np.arange(new)[:, None] + 0.5) * old / new - np.arange(old) - 0.5) / stretch
        weights = np.where(distance < 2, _cubic(distance, METHODS[method]), 0.0)
        return weights / weights.sum(axis=1, keepdims=True)
    if method == "swag":
        centers = np.arange(new) * ((old - 1) / max(new - 1, 1))
    else:
        centers = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centers).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        source = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), source), _cubic(np.abs(centers - (first + tap)), METHODS[method]))
    return weights


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution with coefficient `a`, for distances up to 2."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, far)
