"""What guesses reach that never look at an image: the level that a trained model has to beat."""

import math
from collections.abc import Iterable, Mapping

import numpy as np


def of_classes(
    classes: int, labels: Mapping[str, np.ndarray], choices: Mapping[str, int] | None = None
) -> dict[str, float]:
    """The loss of equal odds for all classes, and the accuracy of always naming the commonest class.

    Args:
      classes: number of classes.
      labels: evaluation set → int [records], the class of each record, or [records, most] where several may be right; -1
        where unknown, and as padding.
      choices: evaluation set → the number of classes among which a model chooses on it, where these are not all.

    Returns:
      Name of a metric → level.
    """
    found = {"train/loss": math.log(classes)}
    for name, own in labels.items():
        right = np.sum(own.reshape(len(own), -1) >= 0, axis=1)  # classes of each record
        known = right[right > 0]
        counts, among = np.bincount(own[own >= 0], minlength=classes), (choices or {}).get(name, classes)
        found[f"{name}/loss"] = float(math.log(among) - np.mean(np.log(known))) if len(known) else math.log(among)
        found[f"{name}/accuracy"] = float(counts.max() / max(len(known), 1))
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
