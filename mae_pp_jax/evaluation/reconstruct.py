"""Pictures of what a masked autoencoder sees and predicts."""

import contextlib
from collections.abc import Callable, Iterator

import cv2
import jax
import numpy as np

from mae_pp_jax.core import hosts, partition
from mae_pp_jax.evaluation.pictures import Picture

ROWS = ("original", "masked", "reconstruction")
LEAST_SIDE = 64  # tiny images are enlarged to at least this many pixels, so that people can see them
GAP = 4


class Reconstructions:
    """A picture with three rows: images as they are, what the model sees of them, and what it predicts.

    Args:
      reconstruct: (params, batch) → name → uint8 images [batch, height, width, 3], by the names in `ROWS`.
      batches: opens one pass over the evaluation split.
      count: images shown.
    """

    name = "reconstruction"

    def __init__(self, reconstruct: Callable, batches: Callable[[], Iterator], count: int):
        def first(params, batch):
            return {row: images[:count] for row, images in reconstruct(params, batch).items()}

        self._reconstruct, self._batches = jax.jit(first), batches

    def run(self, params, mesh) -> dict[str, Picture]:
        with jax.set_mesh(mesh), contextlib.closing(self._batches()) as batches:
            shown = hosts.gather(self._reconstruct(params, partition.to_global(next(batches), mesh)))
        return {self.name: Picture(grid([shown[row] for row in ROWS]))}


def grid(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of uint8 images [count, height, width, 3] as one picture on white."""
    count, *sides = rows[0].shape[:3]
    scale = max(1, -(-LEAST_SIDE // min(sides)))
    height, width = (side * scale + GAP for side in sides)
    picture = np.full((len(rows) * height + GAP, count * width + GAP, 3), 255, np.uint8)
    for y, images in enumerate(rows):
        for x, image in enumerate(images):
            big = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
            top, left = GAP + y * height, GAP + x * width
            picture[top : top + big.shape[0], left : left + big.shape[1]] = big
    return picture
