"""Pictures of what a masked autoencoder sees and paints."""

from collections.abc import Callable, Iterator

import cv2
import jax
import numpy as np

from mae_pp_jax.core import partition

LEAST_SIDE = 64  # tiny images are enlarged to at least this many pixels, so that people can see them
GAP = 4


class Reconstructions:
    """A grid, a row an image: original, masked, reconstructed.

    Args:
      reconstruct: (params, batch) → name → uint8 images [batch, height, width, 3], in the order of columns.
      batches: opens one pass over the evaluation split.
      count: rows.
    """

    name = "reconstruction"

    def __init__(self, reconstruct: Callable, batches: Callable[[], Iterator], count: int):
        self._reconstruct, self._batches, self._count = jax.jit(reconstruct), batches, count

    def run(self, params, mesh) -> dict[str, np.ndarray]:
        batches = self._batches()
        with jax.set_mesh(mesh):
            columns = self._reconstruct(params, partition.to_global(next(batches), mesh))
        rows = min(self._count, next(iter(columns.values())).shape[0])
        shown = [np.asarray(jax.device_get(columns[n][:rows])) for n in ("original", "masked", "reconstruction")]
        return {self.name: grid(shown)}


def grid(columns: list[np.ndarray]) -> np.ndarray:
    """Columns of uint8 images [rows, height, width, 3] as one picture on white."""
    side = columns[0].shape[1]
    scale = max(1, -(-LEAST_SIDE // side))
    cell = side * scale + GAP
    picture = np.full((len(columns[0]) * cell + GAP, len(columns) * cell + GAP, 3), 255, np.uint8)
    for x, images in enumerate(columns):
        for y, image in enumerate(images):
            big = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
            top, left = GAP + y * cell, GAP + x * cell
            picture[top : top + big.shape[0], left : left + big.shape[1]] = big
    return picture
