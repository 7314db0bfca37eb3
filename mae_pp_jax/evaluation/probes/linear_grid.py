"""Linear classifiers for a grid of learning rates and weight decays, trained at once on cached features.

Features are normalised as by MAE's BatchNorm without learned scale (main_linprobe.py, eps 1e-6), with the exact
statistics of the images that are fitted. The grid and the training are VPT's (KMnP/vpt): SGD with momentum 0.9, a linear
warmup, half a cosine, learning rates for 256 images.

All heads see the same batches and start from the same weights, and none knows of another: with more heads each one
becomes the same. They are computed in groups of `GROUP`, which bounds the memory and keeps the shapes of the products,
so that the bits stay too where there are as many.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core import schedule
from mae_pp_jax.data import orders
from mae_pp_jax.evaluation import classify

LEARNING_RATES = (50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05)  # of VPT, for 256 images
WEIGHT_DECAYS = (0.01, 0.001, 0.0001, 0.0)
GROUP = 20  # heads computed together
BLOCK_BYTES = 64 << 20  # features brought to the device at a time
_EPSILON, _MOMENTUM, _SPREAD = 1e-6, 0.9, 0.01  # of the normalisation; of SGD; deviation of the first weights


@dataclasses.dataclass(frozen=True)
class Heads:
    """Trained heads in the order of their settings.

    Attributes:
      kernels: float32 [groups, width, heads of a group · classes].
      biases: float32 [groups, heads of a group · classes].
      mean: float32 [width], of the features.
      scale: float32 [width], what they are multiplied by.
      count: number of heads; the last group may hold more, which mean nothing.
      classes: number of classes.
    """

    kernels: jax.Array
    biases: jax.Array
    mean: np.ndarray
    scale: np.ndarray
    count: int
    classes: int


def train(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    settings: Sequence[tuple[float, float]],
    *,
    epochs: float,
    warmup: float,
    batch: int,
    seed: int,
) -> Heads:
    """Trains a head for each setting.

    Args:
      features: [images, width]; may be mapped from a file.
      labels: int [images].
      classes: number of classes.
      settings: (learning rate for 256 images, weight decay of the kernel) of each head.
      epochs: passes over the features.
      warmup: passes in which the learning rate rises.
      batch: images per step; all of them where there are fewer.
      seed: of the first weights and of the order of images.
    """
    count, width = features.shape
    batch = min(batch, count)
    total = max(1, round(epochs * count / batch))
    mean, scale = statistics(features)
    group = min(GROUP, len(settings))
    groups = -(-len(settings) // group)
    table = np.zeros((groups * group, 2), np.float32)
    table[: len(settings)] = settings
    rates, decays = (np.repeat(table[:, i].reshape(groups, group), classes, 1) for i in (0, 1))
    rates = rates * batch / 256
    first = _SPREAD * jax.random.normal(jax.random.key(seed), (width, classes))
    kernels = jnp.tile(first, (groups, 1, group))
    state = (
        kernels,
        jnp.zeros((groups, group * classes)),
        jnp.zeros_like(kernels),
        jnp.zeros((groups, group * classes)),
    )
    order = orders.Shuffled(count, seed)
    rising = schedule.learning_rate(1.0, warmup=min(round(warmup * count / batch), total - 1), total=total)
    block = max(1, min(total, BLOCK_BYTES // (batch * width * features.dtype.itemsize)))
    for start in range(0, total, block):
        steps = min(block, total - start)
        rows = order.at(np.arange(start * batch, (start + block) * batch) % (total * batch))
        x, y = features[rows].reshape(block, batch, width), labels[rows].reshape(block, batch)
        speed = rising(np.arange(start, start + block))
        state = _steps(state, x, y, speed, rates, decays, mean, scale, steps, classes)
    return Heads(*state[:2], mean, scale, len(settings), classes)


def statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean of the features, 1 / their deviation), float32 [width] each; exact, a block at a time."""
    block = max(1, BLOCK_BYTES // (8 * features.shape[1]))
    parts = range(0, len(features), block)

    def mean_of(function) -> np.ndarray:
        return sum(function(features[i : i + block].astype(np.float64)).sum(0) for i in parts) / len(features)

    mean = mean_of(lambda x: x)
    variance = mean_of(lambda x: (x - mean) ** 2)
    return mean.astype(np.float32), (1 / np.sqrt(variance + _EPSILON)).astype(np.float32)


def measure(heads: Heads, features: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """`accuracy`, `loss` and, where there are more than five classes, `accuracy_top5`: float64 [heads] each.

    A head whose weights are not finite has an accuracy of 0 and a loss of NaN.
    """
    sums: dict[str, np.ndarray] = {}
    size = 2048
    for start in range(0, len(labels), size):
        x, y = features[start : start + size], labels[start : start + size]
        found = _measure(heads.kernels, heads.biases, heads.mean, heads.scale, x, y, heads.classes)
        for name, values in found.items():
            sums[name] = sums.get(name, 0.0) + np.asarray(values, np.float64).ravel()[: heads.count]
    return {name: values / len(labels) for name, values in sums.items()}


@functools.partial(jax.jit, static_argnames="classes", donate_argnums=0)
def _steps(state, x, y, speed, rates, decays, mean, scale, steps, classes: int):
    """As many `steps` of SGD as are asked for, on the first batches of x [block, batch, width] and y [block, batch]."""

    def step(i, state):
        inputs = (x[i].astype(jnp.float32) - mean) * scale
        targets = jax.nn.one_hot(y[i], classes)

        def of_group(own):
            kernel, bias, of_kernel, of_bias, rate, decay = own
            logits = jnp.matmul(inputs, kernel, precision="highest") + bias
            odds = jax.nn.softmax(logits.reshape(len(targets), -1, classes))
            errors = ((odds - targets[:, None]) / len(targets)).reshape(logits.shape)
            # Decay belongs to the gradient, and momentum runs over both, as in torch's SGD.
            of_kernel = _MOMENTUM * of_kernel + jnp.matmul(inputs.T, errors, precision="highest") + decay * kernel
            of_bias = _MOMENTUM * of_bias + errors.sum(0)
            rate = rate * speed[i]
            return kernel - rate * of_kernel, bias - rate * of_bias, of_kernel, of_bias

        return jax.lax.map(of_group, (*state, rates, decays))

    return jax.lax.fori_loop(0, steps, step, state)


@functools.partial(jax.jit, static_argnames="classes")
def _measure(kernels, biases, mean, scale, x, y, classes: int):
    """Sums over images of the measures of each head, [groups, heads of a group]."""
    inputs, ones = (x.astype(jnp.float32) - mean) * scale, jnp.ones(len(y))

    def of_group(own):
        kernel, bias = own
        logits = (jnp.matmul(inputs, kernel, precision="highest") + bias).reshape(len(y), -1, classes)
        found = jax.vmap(lambda own: classify.accuracy(own, y, ones), in_axes=1)(logits)
        likely = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None, None], 2)
        return {**{name: hits for name, (hits, _) in found.items()}, "loss": -likely[..., 0].sum(0)}

    return jax.lax.map(of_group, (kernels, biases))
