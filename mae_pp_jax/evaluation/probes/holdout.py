"""A part of the training images that is held out to choose settings by, so that test images choose nothing."""

import numpy as np


def stratified(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (to fit on, held out), int64 and ascending; every class is held out in the same share.

    Of a class, the nearest whole number of images is held out: at least one where it has two or more, and never all.

    Args:
      labels: int [images].
      share: of the images of each class that is held out, above 0 and below 1.
      seed: of the draw.

    Raises:
      ValueError: no class has two images, so that nothing can be held out.
    """
    rng = np.random.default_rng([seed, 0x401D])
    held = []
    for own in (np.flatnonzero(labels == number) for number in np.unique(labels)):
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        held.append(rng.permutation(own)[:count])
    out = np.sort(np.concatenate(held)).astype(np.int64)
    if not len(out):
        raise ValueError("no class has two images")
    return np.setdiff1d(np.arange(len(labels)), out), out


class Part:
    """Some rows of features that may be mapped from a file; rows are read when they are asked for.

    Args:
      features: [images, width].
      rows: int [chosen].
    """

    def __init__(self, features: np.ndarray, rows: np.ndarray):
        self._features, self._rows = features, rows
        self.shape, self.dtype = (len(rows), features.shape[1]), features.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index) -> np.ndarray:
        return self._features[self._rows[index]]
