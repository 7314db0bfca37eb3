"""Recall both ways, by hand and against a definition that sorts everything."""

import numpy as np
import pytest

from mae_pp_jax.evaluation import retrieval


def by_definition(images, texts, owners, k):
    images, texts = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (images, texts)
    )
    to_text = [i in owners[np.argsort(-(texts @ x), kind="stable")[:k]] for i, x in enumerate(images) if i in owners]
    to_image = [o in np.argsort(-(images @ x), kind="stable")[:k] for o, x in zip(owners, texts, strict=True) if o >= 0]
    return {f"image_to_text_recall_at_{k}": np.mean(to_text), f"text_to_image_recall_at_{k}": np.mean(to_image)}


def test_several_captions_an_image_some_without():
    rng = np.random.default_rng(0)
    images, owners = rng.normal(size=(40, 6)), rng.integers(-1, 38, 90)  # images 38 and 39 have no caption
    texts = np.where(owners[:, None] < 0, 0, images[owners]) + rng.normal(size=(90, 6))
    found = retrieval.recall(images, texts, owners)
    assert found == pytest.approx(
        by_definition(images, texts, owners, 1)
        | by_definition(images, texts, owners, 5)
        | by_definition(images, texts, owners, 10)
    )
    assert 0.1 < found["text_to_image_recall_at_1"] < found["text_to_image_recall_at_10"] < 1


def test_by_hand():
    """Image 0 is nearest to a text of image 1; both texts of image 1 are nearest to it; image 2 has its own."""
    images = np.array([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])
    texts = np.array([[0.8, -0.6, 0], [0.85, 0.53, 0], [0, 1, 0], [0, 0.1, 1]])
    found = retrieval.recall(images, texts, np.array([0, 1, 1, 2]), ranks=(1, 2, 3))
    assert found == pytest.approx(
        {
            "image_to_text_recall_at_1": 2 / 3,
            "image_to_text_recall_at_2": 1,
            "image_to_text_recall_at_3": 1,
            "text_to_image_recall_at_1": 1,
            "text_to_image_recall_at_2": 1,
        }
    )


def test_features_that_are_all_equal_are_a_guess():
    ones = np.ones((20, 4))
    found = retrieval.recall(ones, ones, np.arange(20))
    assert found == pytest.approx(
        {f"{way}_recall_at_{k}": k / 20 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    )


def test_what_is_not_finite_is_never_a_hit():
    images, texts = np.eye(12), np.eye(12)
    images[0], texts[1] = np.nan, np.inf
    found = retrieval.recall(images, texts, np.arange(12))
    assert found == pytest.approx(
        {f"{way}_recall_at_{k}": 10 / 12 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    )
    assert np.isnan(retrieval.recall(images, texts, np.full(12, -1), ranks=(1,))["text_to_image_recall_at_1"])
