"""How well hashtags are ranked: mean average precision."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from sklearn.metrics import average_precision_score

from mae_pp_jax.core import partition


class TagPrecision:
    """Tag mAP: of each hashtag that enough held-out images carry, the average precision of ranking all images by it.

    Args:
      name: the part before the slash in metric names.
      scores: (params, batch) → [batch, tags], higher where a tag is likelier; the batch has `hashtags` [batch,
        max_tags], padded with -1, and `mask` [batch], 0 on padding.
      batches: opens one pass over the evaluation split.
      positives: images that a tag needs to count.
      most_images: images looked at, the first of the split; their scores are kept in memory.
    """

    def __init__(
        self, name: str, scores: Callable, batches: Callable[[], Iterator], positives: int, *, most_images: int
    ):
        self.name, self._scores, self._batches = name, jax.jit(scores), batches
        self._positives, self._most_images = positives, most_images

    def run(self, params, mesh) -> dict[str, float]:
        scores, tags, seen = [], [], 0
        with jax.set_mesh(mesh):
            for batch in self._batches():
                whole = partition.to_global(batch, mesh)
                kept = {"scores": self._scores(params, whole), "hashtags": whole["hashtags"], "mask": whole["mask"]}
                kept = multihost_utils.process_allgather(kept, tiled=True)
                real = np.asarray(kept["mask"]) > 0
                scores.append(np.asarray(kept["scores"], np.float32)[real])
                tags.append(np.asarray(kept["hashtags"])[real])
                seen += int(real.sum())
                if seen >= self._most_images:
                    break
        precision = mean_average_precision(np.concatenate(scores), np.concatenate(tags), self._positives)
        return {f"{self.name}/tag_map": precision[0], f"{self.name}/tags_measured": float(precision[1])}


def mean_average_precision(scores: np.ndarray, tags: np.ndarray, positives: int) -> tuple[float, int]:
    """Mean over tags of scikit-learn's average precision.

    Args:
      scores: [images, vocabulary].
      tags: int [images, max_tags], ids of the tags that an image carries, padded with -1.
      positives: images that a tag needs to count.

    Returns:
      (the mean, NaN if no tag counts; number of tags that count).
    """
    carries = np.zeros(scores.shape, bool)
    rows, columns = np.nonzero(tags >= 0)
    carries[rows, tags[rows, columns]] = True
    counted = np.flatnonzero(carries.sum(0) >= positives)
    found = [average_precision_score(carries[:, tag], scores[:, tag]) for tag in counted]
    return (float(np.mean(found)) if found else float("nan")), len(found)
