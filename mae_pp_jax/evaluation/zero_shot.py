"""Classification by words: a class is the direction of the texts that name it."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.evaluation import classify
from mae_pp_jax.ops import contrastive


def class_embeddings(features: Iterable[np.ndarray], owners: np.ndarray, classes: int) -> np.ndarray:
    """The direction of each class: the mean of the normalised features of all its texts, normalised.

    All names of a class in all templates count alike (MAWS's ZeroShotClassifier).

    Args:
      features: of all texts in order, in batches [texts, width].
      owners: int [all texts], the class of each (`prompts.texts`).
      classes: number of classes.

    Returns:
      float32 [classes, width]. Zeros where the texts of a class cancel out, NaN where a feature is not finite.

    Raises:
      ValueError: there are more or fewer features than texts, or a class has no text.
    """
    sums, done = None, 0
    for batch in features:
        batch = np.asarray(batch, np.float64)
        sums = np.zeros((classes, batch.shape[1])) if sums is None else sums
        if done + len(batch) > len(owners):
            raise ValueError(f"more features than the {len(owners)} texts")
        np.add.at(sums, owners[done : done + len(batch)], _unit(batch))
        done += len(batch)
    without = np.setdiff1d(np.arange(classes), owners)
    if done != len(owners) or sums is None or without.size:
        raise ValueError(f"{done} features of {len(owners)} texts; classes without a text: {without.tolist()}")
    return _unit(sums).astype(np.float32)


def logits(features: jax.Array, classes: jax.Array) -> jax.Array:
    """Cosines of images [batch, width] with classes [classes, width], float32 [batch, classes]."""
    return jnp.matmul(contrastive.unit(features), contrastive.unit(classes).T, precision="highest")


def of_batch(
    features: jax.Array, classes: jax.Array, batch: Mapping[str, jax.Array]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Accuracies of a batch of an evaluation set, as (sum, weight).

    Args:
      features: [batch, width] of its images.
      classes: [classes, width], from `class_embeddings`.
      batch: `label`, `mask` and maybe `allowed`, as `classify.of_batch` takes them.
    """
    return classify.accuracy(classify.restricted(logits(features, classes), batch), batch["label"], batch["mask"])


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows [rows, width] of length 1, in float64; zeros stay zero."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=rows * 0, where=length != 0)
