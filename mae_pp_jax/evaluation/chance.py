"""What guesses reach that never look at an image: the level that a trained model has to beat."""

import math
from collections.abc import Iterable, Mapping

import numpy as np


def of_classes(classes: int, labels: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The loss of equal odds for all classes, and the accuracy of always naming the commonest class.

    Args:
      classes: number of classes.
      labels: evaluation set → int [records], the class of each record; -1 where unknown.

    Returns:
      Name of a metric → level.
    """
    found = {"train/loss": math.log(classes)}
    for name, own in labels.items():
        counts = np.bincount(own[own >= 0], minlength=classes)
        found |= {f"{name}/loss": math.log(classes), f"{name}/accuracy": float(counts.max() / max(counts.sum(), 1))}
    return found


def of_hashtags(vocabulary: int, hashtags: Mapping[str, Iterable[np.ndarray]]) -> dict[str, float]:
    """The loss of equal odds for all hashtags, and the precision of always naming the commonest one.

    Args:
      vocabulary: number of hashtags.
      hashtags: evaluation set (or "train") → of each record, int [n], its hashtags without repeats. Records without any
        do not count.

    Returns:
      Name of a metric → level.
    """
    found = {"train/loss": math.log(vocabulary)}
    for name, records in hashtags.items():
        tagged = [ids for ids in records if len(ids)]
        counts = np.bincount(np.concatenate(tagged), minlength=vocabulary) if tagged else np.zeros(1)
        precision = float(counts.max() / max(len(tagged), 1))
        found |= {f"{name}/loss": math.log(vocabulary), f"{name}/tag_precision": precision}
    return found
