"""Losses and targets against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.ops import losses


def test_softmax_cross_entropy_is_its_definition():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(5, 7)) * 4, rng.dirichlet(np.ones(7), 5)
    expected = [
        -sum(t * (z - np.log(np.sum(np.exp(row)))) for t, z in zip(target, row, strict=True))
        for row, target in zip(logits, targets, strict=True)
    ]
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, targets), expected, rtol=1e-5)


def test_softmax_cross_entropy_survives_large_logits_and_low_precision():
    logits = jnp.array([[1e4, 0.0, -1e4]], jnp.bfloat16)
    loss = losses.softmax_cross_entropy(logits, jnp.array([[1.0, 0.0, 0.0]]))
    assert loss.dtype == jnp.float32 and loss[0] == 0.0


def test_gradient_is_probability_minus_target():
    logits, targets = jnp.array([[0.3, -1.0, 2.0]]), jnp.array([[0.5, 0.5, 0.0]])
    grad = jax.grad(lambda z: losses.softmax_cross_entropy(z, targets).sum())(logits)
    np.testing.assert_allclose(grad, jax.nn.softmax(logits) - targets, atol=1e-6)


def test_smooth_labels():
    targets = losses.smooth_labels(jnp.array([2, 0]), 4, 0.1)
    np.testing.assert_allclose(targets, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6)
    np.testing.assert_array_equal(losses.smooth_labels(jnp.array([1]), 3, 0.0), [[0, 1, 0]])


def test_hashtag_targets():
    ids = jnp.array([[3, 1, -1], [2, 2, 0], [-1, -1, -1], [4, -1, -1]], jnp.int32)
    targets, weight = losses.hashtag_targets(ids, 5)
    expected = [[0, 0.5, 0, 0.5, 0], [0.5, 0, 0.5, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(targets, expected)
    np.testing.assert_array_equal(weight, [1, 1, 0, 1])


def test_image_without_hashtags_adds_nothing():
    targets, weight = losses.hashtag_targets(jnp.array([[-1, -1]], jnp.int32), 6)
    loss, grad = jax.value_and_grad(lambda z: jnp.sum(losses.softmax_cross_entropy(z, targets) * weight))(
        jnp.arange(6.0)[None]
    )
    assert loss == 0 and not np.any(grad)
