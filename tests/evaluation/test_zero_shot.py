"""Classes from texts, by hand and by the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.evaluation import zero_shot


def test_every_text_of_a_class_counts_alike_whatever_its_length():
    features = np.array([[10.0, 0], [0, 0.1], [0, 3], [-5, 0]])
    found = zero_shot.class_embeddings([features[:3], features[3:]], np.array([0, 0, 0, 1]), 2)
    np.testing.assert_allclose(found, [[1 / 5**0.5, 2 / 5**0.5], [-1, 0]], rtol=1e-6)


def test_texts_that_cancel_out_and_texts_that_are_not_finite():
    features = np.array([[1.0, 0], [-2, 0], [np.nan, 1], [0, 1]])
    found = zero_shot.class_embeddings([features], np.array([0, 0, 1, 2]), 3)
    np.testing.assert_array_equal(found[[0, 2]], [[0, 0], [0, 1]])
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("owners, classes", [([0, 1], 2), ([0, 1, 1, 1], 2), ([0, 0, 2], 3)])
def test_features_that_are_not_those_of_the_texts_are_refused(owners, classes):
    with pytest.raises(ValueError, match="texts"):
        zero_shot.class_embeddings([np.ones((3, 2))], np.array(owners), classes)


def test_accuracy_by_cosine():
    """A class with few long and many short texts; images of any length; one that is not finite, one that is padding."""
    rng = np.random.default_rng(0)
    classes, owners = 7, np.arange(42) % 7
    texts, images = rng.normal(size=(42, 5)), rng.normal(size=(60, 5)) * rng.uniform(0.1, 9, (60, 1))
    labels, mask = rng.integers(7, size=60), np.ones(60)
    images[3], mask[4] = np.nan, 0
    unit = texts / np.linalg.norm(texts, axis=1)[:, None]
    means = np.stack([unit[owners == c].mean(0) for c in range(classes)])
    cosines = (images @ means.T) / np.linalg.norm(images, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    order = np.argsort(-cosines, axis=1)
    counts = (np.arange(60) != 3) & (mask > 0)
    embedded = zero_shot.class_embeddings([texts], owners, classes)
    batch = {"label": labels, "mask": mask}
    found = jax.jit(zero_shot.of_batch)(images, embedded, batch)
    assert float(found["accuracy"][0]) == np.sum((order[:, 0] == labels) & counts) and found["accuracy"][1] == 59
    assert float(found["accuracy_top5"][0]) == np.sum((order[:, :5] == labels[:, None]).any(1) & counts)
    logits = np.asarray(jax.jit(zero_shot.logits)(images, embedded))
    np.testing.assert_allclose(np.delete(logits, 3, 0), np.delete(cosines, 3, 0), atol=1e-6)


def test_classes_may_be_restricted():
    batch = {"label": jnp.array([1]), "mask": jnp.ones(1), "allowed": jnp.array([[False, True, True]])}
    found = jax.jit(zero_shot.of_batch)(jnp.array([[1.0, 0.2]]), jnp.array([[1.0, 0], [0, 1], [-1, 0]]), batch)
    assert found["accuracy"][0] == 1
