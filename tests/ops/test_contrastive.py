"""Contrastive losses against their definitions in float64, on one device and on meshes, and the memory they take."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mae_pp_jax.core import config, partition
from mae_pp_jax.ops import contrastive
from tests.parity import contrastive as reference

WIDTH = 24


def drawn(batch, seed=0, shared=0.6):
    """Images and texts [batch, width] of unit length, alike in pairs."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(batch, WIDTH))
    texts = shared * images + rng.normal(size=(batch, WIDTH))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (images, texts))


def softmax(images, texts, log_scale, bias):
    """(losses [batch], derivatives of their sum by each logit, logits) by the definition, in float64."""
    logits = np.exp(log_scale) * images @ texts.T + bias
    rows = np.exp(logits - logits.max(1, keepdims=True))
    columns = np.exp(logits - logits.max(0))
    rows, columns = rows / rows.sum(1, keepdims=True), columns / columns.sum(0)
    losses = -(np.log(np.diag(rows)) + np.log(np.diag(columns))) / 2
    slope = (rows + columns) / 2 - np.eye(len(images))
    return losses, slope, logits


def sigmoid(images, texts, log_scale, bias):
    sign, logits = 2 * np.eye(len(images)) - 1, np.exp(log_scale) * images @ texts.T + bias
    pairs = np.log1p(np.exp(-sign * logits))
    losses = (pairs.sum(0) + pairs.sum(1)) / 2
    slope = -sign / (1 + np.exp(sign * logits))
    return losses, slope, logits


DEFINITIONS = {"softmax": softmax, "sigmoid": sigmoid}


@functools.partial(jax.jit, static_argnames=("name", "block"))
def ours(images, texts, log_scale, bias, mask, name, block):
    """((sum, weight), losses) and the gradients of the sum."""

    def total(*arguments):
        summed, losses = reference.ours(name)(*arguments, mask, block)
        return summed[0], (summed, losses)

    (_, found), gradients = jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True)(images, texts, log_scale, bias)
    return found, gradients


def check(name, images, texts, mask=None, block=16, log_scale=np.log(9.0), bias=-4.0):
    """Ours against the definition of the rows that count."""
    mask = np.ones(len(images), np.float32) if mask is None else mask
    (summed, losses), gradients = ours(
        images, texts, np.float32(log_scale), np.float32(bias), mask, name=name, block=block
    )
    some = mask > 0
    images, texts = (x[some].astype(np.float64) for x in (images, texts))
    log_scale = np.float64(np.float32(log_scale))
    expected, slope, logits = DEFINITIONS[name](images, texts, log_scale, bias)
    np.testing.assert_allclose(losses[some], expected, rtol=2e-6)
    np.testing.assert_allclose(summed, (expected.sum(), some.sum()), rtol=2e-6)
    assert not np.any(np.asarray(losses)[~some])
    slopes = np.exp(log_scale) * slope @ texts, np.exp(log_scale) * slope.T @ images
    for found, exact in zip(gradients[:2], slopes, strict=True):
        np.testing.assert_allclose(np.asarray(found)[some], exact, rtol=0, atol=3e-6 * np.abs(exact).max())
        assert not np.any(np.asarray(found)[~some])
    # Sums over all pairs in which much cancels: held against the sum of their terms without signs.
    terms = slope * (logits - bias), slope if name == "sigmoid" else np.zeros(1)  # a softmax does not see the bias
    for found, each in zip(gradients[2:], terms, strict=True):
        assert abs(found - each.sum()) <= 3e-6 * np.abs(each).sum()


@pytest.mark.parametrize("name, batch, block", [("softmax", 1, 16), ("softmax", 37, 16), ("sigmoid", 11, 3)])
def test_on_one_device_at_odd_batches(name, batch, block):
    check(name, *drawn(batch), block=block)


def mesh_of(shape):
    sizes = dict(zip(partition.MESH_AXES, shape, strict=True))
    return partition.make_mesh(config.resolve(partition.MeshConfig, sizes))


@pytest.mark.parametrize(
    "name, shape",
    [("softmax", (8, 1, 1)), ("softmax", (2, 4, 1)), ("softmax", (2, 2, 2)), ("sigmoid", (2, 4, 1))],
)
def test_on_meshes_padding_counts_for_nothing_whatever_it_holds(name, shape):
    """Five rows on a device, or ten, in two or three blocks of which the last is not full."""
    images, texts = drawn(40, seed=2)
    mask = (np.arange(40) % 3 > 0).astype(np.float32)
    images[::3], texts[::6] = np.nan, np.inf
    with jax.set_mesh(mesh_of(shape)):
        check(name, images, texts, mask, block=18)


def test_a_batch_of_padding_alone_has_no_loss():
    images, texts = drawn(11)
    (summed, losses), gradients = ours(images, texts, 1.0, 0.0, np.zeros(11), name="softmax", block=16)
    assert not any(np.any(x) for x in jax.tree.leaves((summed, losses, gradients)))


def test_pairs_that_are_told_apart_well_keep_their_digits():
    """Own cosines of 1 and others of 0 at scale 60: losses of 3·e^-60, which log(1 + …) would round to nothing."""
    images = np.eye(4, dtype=np.float32)
    log_scale, ones = np.float32(np.log(60)), np.ones(4)
    scale = np.exp(np.float64(log_scale))
    (_, losses), gradients = ours(images, images, log_scale, 0.0, ones, name="softmax", block=16)
    np.testing.assert_allclose(losses, 3 * np.exp(-scale), rtol=1e-4)
    np.testing.assert_allclose(np.diag(gradients[0]), -3 * scale * np.exp(-scale), rtol=1e-4)
    (_, losses), _ = ours(images, images, log_scale, -30.0, ones, name="sigmoid", block=16)
    np.testing.assert_allclose(losses, 3 * np.exp(-30.0) + np.exp(30.0 - scale), rtol=1e-4)


def test_features_of_low_precision_are_summed_in_float32():
    images, texts = (jnp.asarray(x, jnp.bfloat16) for x in drawn(19, seed=4))
    (_, losses), gradients = ours(images, texts, 2.0, 0.0, np.ones(19), name="softmax", block=8)
    expected, *_ = softmax(np.asarray(images, np.float64), np.asarray(texts, np.float64), 2.0, 0.0)
    np.testing.assert_allclose(losses, expected, rtol=2e-6)
    assert losses.dtype == jnp.float32 and gradients[0].dtype == jnp.bfloat16


def temporary_bytes(name, batch, mesh):
    lies = NamedSharding(mesh, PartitionSpec(partition.BATCH_AXES))
    features = jax.ShapeDtypeStruct((batch, 16), jnp.float32, sharding=lies)
    mask = jax.ShapeDtypeStruct((batch,), jnp.float32, sharding=lies)
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        lowered = ours.lower(features, features, scalar, scalar, mask, name=name, block=64)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_the_batch():
    mesh = mesh_of((8, 1, 1))
    small, large = (temporary_bytes("softmax", batch, mesh) for batch in (2048, 16384))
    assert 0 < large <= 8 * small
    assert large < 16384**2 / 8 * 4 / 50  # of one device's part of the matrix of all pairs


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_as_open_clip(name):
    """Stored answers of open_clip in float64; see tests/parity/contrastive.py."""
    assert max(reference.differences(name, dict(np.load(reference.STORED))).values()) <= 1e-6


def test_unit_length():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [1e37, -1e37], [1e-37, 0.0], [np.inf, 1.0]], np.float32)
    half = 0.5**0.5
    expected = [[0.6, 0.8], [0, 0], [half, -half], [1, 0], [np.nan, np.nan]]
    np.testing.assert_allclose(jax.jit(contrastive.unit)(rows), expected, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(contrastive.unit(x)[:, 0])))(rows[:2])
    np.testing.assert_allclose(gradient[0], [0.64 / 5, -0.48 / 5], rtol=1e-5)  # (1 - u²) / length, -u v / length
    assert np.all(np.isfinite(gradient[1]))
