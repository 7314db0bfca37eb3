"""Measures of classification."""

import jax
import jax.numpy as jnp


def accuracy(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Top-1 accuracy, and top-5 where there are more than five classes, as (sum, weight).

    Args:
      logits: [batch, classes].
      labels: [batch].
      mask: [batch], weight of each image.
    """
    weight = jnp.sum(mask)
    best = jnp.argmax(logits, axis=-1) == labels
    out = {"accuracy": (jnp.sum(best * mask), weight)}
    if logits.shape[-1] > 5:
        # Rank of the label's logit, without a sort, and without a gather where classes are split over devices.
        is_own = labels[:, None] == jnp.arange(logits.shape[-1])
        own = jnp.max(logits, axis=-1, keepdims=True, where=is_own, initial=-jnp.inf)
        in_five = jnp.sum(logits > own, axis=-1) < 5
        out["accuracy_top5"] = (jnp.sum(in_five * mask), weight)
    return out
