"""Measures of classification."""

import jax
import jax.numpy as jnp


def accuracy(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Top-1 accuracy, and top-5 where there are more than five classes, as (sum, weight).

    Among equal logits the class with the lower index ranks first, as `argmax` and `top_k` have it. An image with a
    logit that is NaN or +inf is never a hit, nor is one without a class (a label below 0).

    Args:
      logits: [batch, classes]; -inf rules a class out.
      labels: [batch].
      mask: [batch], weight of each image.
    """
    weight = jnp.sum(mask)
    counts = mask * ranked(logits)
    best = jnp.argmax(logits, axis=-1) == labels
    out = {"accuracy": (jnp.sum(best * counts), weight)}
    if logits.shape[-1] > 5:
        # Rank of the label's logit, without a sort, and without a gather where classes are split over devices.
        classes = jnp.arange(logits.shape[-1])
        is_own = labels[:, None] == classes
        own = jnp.max(logits, axis=-1, keepdims=True, where=is_own, initial=-jnp.inf)
        ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
        in_five = (jnp.sum(ahead, axis=-1) < 5) & (labels >= 0)
        out["accuracy_top5"] = (jnp.sum(in_five * counts), weight)
    return out


def ranked(logits: jax.Array) -> jax.Array:
    """Whether the logits [..., classes] of an image rank its classes: none is NaN or +inf. Bool [...]."""
    return jnp.all(logits < jnp.inf, axis=-1)
