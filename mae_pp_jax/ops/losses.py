"""Classification losses and the targets that they compare with."""

import jax
import jax.numpy as jnp

from mae_pp_jax.core.partition import constrain

LOGIT_AXES = ("batch", "tensor")  # a device holds the logits and targets of its own images and classes


def softmax_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy against soft targets, -Σ targets · log softmax(logits), computed in float32.

    Where classes are split over devices, each device works on its own: maxima and sums over classes are exchanged, the
    logits are not.

    Args:
      logits: [batch, classes].
      targets: [batch, classes], rows that sum to 1. A row of zeros has loss 0.

    Returns:
      [batch], nats.
    """
    logits = constrain(logits.astype(jnp.float32), LOGIT_AXES)
    log_probabilities = constrain(jax.nn.log_softmax(logits, axis=-1), LOGIT_AXES)
    return -jnp.sum(targets.astype(jnp.float32) * log_probabilities, axis=-1)


def cross_entropy_of_any(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log of the probability that softmax(logits) gives to any of an image's classes, computed in float32.

    Args:
      logits: [batch, classes]; -inf rules a class out.
      labels: [batch], or [batch, most] padded with -1, where several classes are right.

    Returns:
      [batch], nats; inf where no class is right.
    """
    logits = constrain(logits.astype(jnp.float32), LOGIT_AXES)
    own = jnp.where(is_any(labels.reshape(len(labels), -1), logits.shape[-1]), logits, -jnp.inf)
    return jax.nn.logsumexp(logits, axis=-1) - jax.nn.logsumexp(own, axis=-1)


def is_any(labels: jax.Array, classes: int) -> jax.Array:
    """Whether a class is among the labels [batch, most]: bool [batch, classes]."""
    return jnp.any(labels[:, :, None] == jnp.arange(classes), axis=1)


def smooth_labels(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """Smoothed one-hot targets as timm makes them: smoothing/classes off the label, 1 - smoothing more on it.

    Args:
      labels: [batch] whole numbers in [0, classes).
      classes: number of classes.
      smoothing: 0 gives one-hot targets.

    Returns:
      [batch, classes], float32.
    """
    return jax.nn.one_hot(labels, classes, dtype=jnp.float32) * (1.0 - smoothing) + smoothing / classes


def hashtag_targets(ids: jax.Array, vocabulary: int) -> tuple[jax.Array, jax.Array]:
    """Targets of weakly supervised pretraining: 1/K on each of an image's K different hashtags (Mahajan et al. 2018).

    Args:
      ids: [batch, max_tags] int32, padded with -1. A hashtag that an image carries twice counts once.
      vocabulary: number of hashtags.

    Returns:
      targets: [batch, vocabulary] float32. Rows sum to 1, or are zero where an image has no hashtag.
      weight: [batch] float32, 1 for images with at least one hashtag, else 0: their weight in the mean of the loss.
    """
    present = is_any(ids, vocabulary)
    count = jnp.sum(present, axis=-1, keepdims=True)
    targets = constrain(present.astype(jnp.float32) / jnp.maximum(count, 1), LOGIT_AXES)
    return targets, (count[:, 0] > 0).astype(jnp.float32)
