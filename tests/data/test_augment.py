"""Augmentation on the device."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.data import augment


def test_normalize_against_its_definition():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    out = augment.normalize(images, mean, std, jnp.float32)
    np.testing.assert_allclose(out, (images / 255.0 - np.array(mean)) / np.array(std), rtol=1e-5, atol=1e-6)
    assert augment.normalize(images, mean, std, jnp.bfloat16).dtype == jnp.bfloat16


def test_random_flip_mirrors_about_half_of_the_images_left_to_right():
    images = np.random.default_rng(0).integers(0, 256, (400, 3, 4, 3), dtype=np.uint8)
    keys, others = (jax.random.split(jax.random.key(seed), 400) for seed in (0, 1))
    out = np.asarray(augment.random_flip(images, keys))
    same = (out == images).all((1, 2, 3))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all() and 150 < mirrored.sum() < 250
    assert not np.array_equal(out, augment.random_flip(images, others))


def test_erased_rectangles_against_their_definition():
    """timm's `RandomErasing._erase`, written out."""
    height, width, draws = 12, 80, np.random.default_rng(0).random((300, augment.ERASE_DRAWS)).astype(np.float32)
    draws[-10:, 0], draws[-10:, 1:-2] = 0, 0.99  # too tall, all of them
    expected = []
    for whether, *tries, top, left in draws.astype(float):
        box = (0, 0, 0, 0)
        for area, aspect in zip(tries[::2], tries[1::2]):
            area = (0.02 + (1 / 3 - 0.02) * area) * height * width
            aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * aspect)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < width and h < height:
                top, left = int(top * (height - h + 1)), int(left * (width - w + 1))
                box = (top, top + h, left, left + w)
                break
        expected.append(box if whether <= 0.25 else (0, 0, 0, 0))
    assert (0, 0, 0, 0) in expected[-10:]  # none of the tries fits
    found = jax.jit(augment.erased_boxes, static_argnums=(1, 2))(draws, (height, width), 0.25)
    np.testing.assert_array_equal(found, expected)


def test_erasing_puts_normal_noise_into_a_share_of_the_images():
    images, keys = jnp.full((64, 32, 32, 3), 7.0), jax.random.split(jax.random.key(0), 64)
    out = np.asarray(jax.jit(lambda i, k: augment.random_erase(i, k, 0.5))(images, keys))
    changed = (out != 7).any(-1)
    assert 20 < changed.any((1, 2)).sum() < 44
    noise = out[changed]
    assert noise.mean() == pytest.approx(0, abs=0.02) and noise.std() == pytest.approx(1, abs=0.02)
    first, second = out[changed.any((1, 2))][:2]
    assert not np.isin(first[first != 7], second).any()  # noise of their own
    for places in changed[changed.any((1, 2))]:
        rows, columns = np.flatnonzero(places.any(1)), np.flatnonzero(places.any(0))
        assert places[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # a rectangle


def test_cut_boxes_against_their_definition():
    height, width = 20, 33
    found = jax.jit(jax.vmap(lambda share, draws: augment.cut_box(share, draws, (height, width))))
    shares, draws = np.repeat(np.float32([0.0, 0.2, 0.64, 1.0]), 40), np.random.default_rng(0).random((160, 2))
    for box, share, (y, x) in zip(found(shares, draws), shares, draws.astype(np.float32)):
        tall, wide = int(height * math.sqrt(1 - share)) // 2, int(width * math.sqrt(1 - share)) // 2
        y, x = int(y * height), int(x * width)
        expected = (max(y - tall, 0), min(y + tall, height), max(x - wide, 0), min(x + wide, width))
        np.testing.assert_array_equal(box, expected)


def weights(**settings):
    """(shares of 400 batches, weights of their own pixels [400, 8, 12])."""
    keys = jax.random.split(jax.random.key(0), 400)
    share, own = jax.jit(jax.vmap(lambda key: augment.mix_weights(key, (8, 12), **settings)))(keys)
    return np.asarray(share), np.asarray(own)[..., 0]


def test_batches_are_mixed_by_one_share_or_by_a_rectangle():
    share, own = weights(mixup=0.8, cutmix=1.0, probability=1.0, switch=0.5)
    even = np.ptp(own, axis=(1, 2)) == 0
    blended = even & (own[:, 0, 0] < 1)
    assert 150 < blended.sum() < 250  # the others are cut, some of them nowhere
    np.testing.assert_allclose(own.mean((1, 2)), share, atol=1e-6)  # labels have the share of the pixels
    assert set(np.unique(own[~even])) == {0.0, 1.0}
    # Beta(0.8, 0.8): mean 1/2, variance 1 / (4 · 2.6)
    assert share[blended].mean() == pytest.approx(0.5, abs=0.06)
    assert share[blended].var() == pytest.approx(1 / 10.4, abs=0.02)


def test_mixing_may_be_rare_and_of_one_kind():
    share, own = weights(mixup=0.0, cutmix=1.0, probability=0.25, switch=0.5)
    assert np.mean(share < 1) == pytest.approx(0.25, abs=0.07) and np.all(own[share == 1] == 1)
    assert set(np.unique(own)) == {0.0, 1.0}
