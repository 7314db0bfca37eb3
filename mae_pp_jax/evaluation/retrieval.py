"""Retrieval: whether an image finds one of its captions among all, and a caption its image."""

from collections.abc import Sequence

import numpy as np

from mae_pp_jax.evaluation import nearest

RANKS = (1, 5, 10)


def recall(images: np.ndarray, texts: np.ndarray, owners: np.ndarray, ranks: Sequence[int] = RANKS) -> dict[str, float]:
    """Share of images with a caption of theirs among the k most similar texts, and the reverse, for each k of `ranks`.

    Of equally similar ones the earlier ranks first. What is not finite is never a hit. A k that is not below the number
    of what is searched is left out: everything would be found.

    Args:
      images: [images, width], of any length. Both may be mapped from a file.
      texts: [texts, width]; several may belong to one image.
      owners: int [texts], the image of each text; -1 for one that belongs to none and is only to be confused with.
      ranks: values of k.

    Returns:
      `image_to_text_recall_at_K`, over images that have a caption, and `text_to_image_recall_at_K`, over texts that
      have an image; NaN where there are none.
    """
    captioned = np.isin(np.arange(len(images)), owners)
    ways = {
        "image_to_text": (texts, images, captioned, lambda found, own: owners[found] == own),
        "text_to_image": (images, texts, owners >= 0, lambda found, own: found == owners[own]),
    }
    out = {}
    for way, (base, queries, counts, belongs) in ways.items():
        some = [k for k in ranks if k < len(base)]
        if not some:
            continue
        _, found = nearest.top_k(base, queries, max(some))
        hits = (found >= 0) & belongs(found, np.arange(len(queries))[:, None])
        for k in some:
            any_hit = np.any(hits[:, :k], axis=1)[counts]
            out[f"{way}_recall_at_{k}"] = float(np.mean(any_hit)) if any_hit.size else float("nan")
    return out
