"""How well hashtags are ranked: mean average precision, and whether the most probable one is right."""

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import average_precision_score

from mae_pp_jax.core import hosts, partition
from mae_pp_jax.evaluation import classify

log = logging.getLogger(__name__)


class TagMap:
    """Tag mAP: of each hashtag that enough held-out images carry, the average precision of ranking all images by it.

    It is measured on the first `images` records that can be read, whatever the batch, the mesh and the number of hosts.

    Which tags count is read before any image, and only their scores leave the devices; process 0 alone keeps them.
    They stay float32, as rounding to float16 would make ties of scores that differ. 10,000 images with 5 tags of a
    vocabulary of 28,000 each have at most 10,000 tags that 5 images carry: at most 400 MB. If all 28,000 tags counted,
    it would be 1.1 GB.

    Args:
      name: the part before the slash in metric names.
      scores: (params, batch) → [batch, tags], higher where a tag is likelier.
      batches: opens one pass over the evaluation split, in order; `mask` [batch] is 0 on padding and unreadable images.
      tags: opens one pass over the ids of the tags that each record of the split carries, int [n], in order.
      positives: images that a tag needs to count.
      images: records looked at, the first of the split.
    """

    def __init__(
        self,
        name: str,
        scores: Callable,
        batches: Callable[[], Iterator],
        tags: Callable[[], Iterable[np.ndarray]],
        *,
        positives: int,
        images: int,
    ):
        def of_tags(params, batch, wanted):
            return jnp.take(scores(params, batch), wanted, axis=1).astype(jnp.float32)

        self.name, self._scores, self._batches, self._tags = name, jax.jit(of_tags), batches, tags
        self._positives, self._images = positives, images

    def run(self, params, mesh) -> dict[str, float]:
        """The mean, which is NaN where no tag counts or a score is not finite, and the number of tags that count."""
        records, carried_by = self._counted
        wanted = np.asarray(hosts.from_first(lambda: list(carried_by)), np.int32)
        scores, read = self._read(params, mesh, wanted, records)
        mean, counted = hosts.from_first(
            lambda: list(mean_average_precision(scores, carried_by.values(), read, self._positives))
        )
        return {f"{self.name}/tag_map": mean, f"{self.name}/tags_measured": float(counted)}

    @functools.cached_property
    def _counted(self) -> tuple[int, dict[int, list[int]]]:
        """(number of records, tag → records that carry it, of tags on enough of them); nothing but on process 0."""
        tags = list(itertools.islice(self._tags(), self._images)) if hosts.first() else []
        return len(tags), {tag: own for tag, own in carriers(tags).items() if len(own) >= self._positives}

    def _read(self, params, mesh, wanted: np.ndarray, records: int) -> tuple[np.ndarray, np.ndarray]:
        """(float32 [wanted tags, records], bool [records]: which could be read) on process 0.

        Args:
          wanted: int32, ids of the tags.
          records: number of records that are measured; 0 but on process 0.
        """
        scores, read, start = np.empty((len(wanted), records), np.float32), np.zeros(records, bool), 0
        with jax.set_mesh(mesh), contextlib.closing(self._batches()) as batches:
            for batch in batches if len(wanted) else ():
                whole = partition.to_global(batch, mesh)
                found = hosts.gather({"scores": self._scores(params, whole, wanted), "mask": whole["mask"]})
                if hosts.first():
                    stop = min(start + len(found["mask"]), records)
                    scores[:, start:stop] = found["scores"][: stop - start].T
                    read[start:stop] = found["mask"][: stop - start] > 0
                start += len(found["mask"])
                if start >= self._images:
                    break
        return scores, read


def carriers(tags: Iterable[np.ndarray]) -> dict[int, list[int]]:
    """Tag → the records that carry it, ascending; in the order of the tags' ids.

    Args:
      tags: of each record, int [n], ids of its tags; negative ones are padding.
    """
    found: dict[int, list[int]] = {}
    for record, ids in enumerate(tags):
        for tag in np.unique(ids[ids >= 0]).tolist():
            found.setdefault(tag, []).append(record)
    return dict(sorted(found.items()))


def mean_average_precision(
    scores: np.ndarray, carriers: Iterable[list[int]], read: np.ndarray, positives: int
) -> tuple[float, int]:
    """Mean over tags of scikit-learn's average precision.

    Args:
      scores: [tags, records].
      carriers: of each tag, the records that carry it.
      read: bool [records], which of them take part.
      positives: records that a tag needs to count.

    Returns:
      (the mean, NaN if no tag counts or a score is not finite; number of tags that count).
    """
    found = []
    for own, carried_by in zip(scores, carriers, strict=True):
        carries = np.zeros(len(read), bool)
        carries[carried_by] = True
        if carries[read].sum() >= positives:
            finite = np.isfinite(own[read]).all()
            found.append(average_precision_score(carries[read], own[read]) if finite else np.nan)
    if not found:
        log.warning("tag mAP is not measured: none of the hashtags is on as many as %d of the images", positives)
    elif not np.isfinite(found).all():
        log.warning("tag mAP: scores of %d of %d hashtags are not finite", np.isnan(found).sum(), len(found))
    return (float(np.mean(found)) if found else float("nan")), len(found)


def top_tag_hits(logits: jax.Array, hashtags: jax.Array) -> jax.Array:
    """Whether an image carries the most probable hashtag; never where a logit is NaN or +inf. Bool [batch].

    Args:
      logits: [batch, tags].
      hashtags: int [batch, max_tags], ids of the tags that an image carries, padded with -1.
    """
    return jnp.any(hashtags == jnp.argmax(logits, -1)[:, None], axis=-1) & classify.ranked(logits)
