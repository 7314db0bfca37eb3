"""Augmentation on the device."""

import jax
import jax.numpy as jnp
import numpy as np

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
