"""Measures of classification."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mae_pp_jax.ops import losses


def of_batch(logits: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Loss and accuracies of a batch of an evaluation set, as (sum, weight).

    Args:
      logits: [batch, classes].
      batch: `label` [batch], or [batch, most] where several classes may be right; `mask` [batch], 0 on padding; and maybe
        `allowed`, as `restricted` takes it.
    """
    logits, mask = restricted(logits, batch), batch["mask"]
    loss = jnp.where(mask > 0, losses.cross_entropy_of_any(logits, batch["label"]) * mask, 0)  # of padding: maybe inf
    return {"loss": (jnp.sum(loss), jnp.sum(mask)), **accuracy(logits, batch["label"], mask)}


def restricted(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Logits [batch, …, classes], -inf for the classes that `allowed` of the batch, bool [batch, classes], rules out."""
    if "allowed" not in batch:
        return logits
    allowed = jnp.expand_dims(batch["allowed"], range(1, logits.ndim - 1))
    return jnp.where(allowed, logits, -jnp.inf)


def accuracy(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Top-1 accuracy, and top-5 where there are more than five classes, as (sum, weight).

    Among equal logits the class with the lower index ranks first, as `argmax` and `top_k` have it. An image with a
    logit that is NaN or +inf is never a hit, nor is one without a class (labels below 0).

    Args:
      logits: [batch, classes]; -inf rules a class out.
      labels: [batch], or [batch, most], padded with -1, where any of several classes is a hit.
      mask: [batch], weight of each image.
    """
    weight = jnp.sum(mask)
    counts = mask * ranked(logits)
    labels = labels.reshape(len(labels), -1)
    best = jnp.any(jnp.argmax(logits, axis=-1)[:, None] == labels, axis=-1)
    out = {"accuracy": (jnp.sum(best * counts), weight)}
    if logits.shape[-1] > 5:
        # Rank of the best label's logit, without a sort, and without a gather where classes are split over devices.
        classes = jnp.arange(logits.shape[-1])
        is_own = losses.is_any(labels, logits.shape[-1])
        own = jnp.max(logits, axis=-1, keepdims=True, where=is_own, initial=-jnp.inf)
        first = jnp.min(jnp.where(is_own & (logits == own), classes, len(classes)), axis=-1, keepdims=True)
        ahead = (logits > own) | ((logits == own) & (classes < first))
        in_five = (jnp.sum(ahead, axis=-1) < 5) & jnp.any(labels >= 0, axis=-1)
        out["accuracy_top5"] = (jnp.sum(in_five * counts), weight)
    return out


def ranked(logits: jax.Array) -> jax.Array:
    """Whether the logits [..., classes] of an image rank its classes: none is NaN or +inf. Bool [...]."""
    return jnp.all(logits < jnp.inf, axis=-1)
