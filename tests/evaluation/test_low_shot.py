"""Accuracy over splits: by hand, on evaluation sets of any name, and without a number where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from mae_pp_jax.evaluation import classify
from mae_pp_jax.evaluation.low_shot import OverSplits


def measured(logits, name="test", mask=1.0):
    """Accuracy of logits [images, splits, classes] on images whose class is their number."""
    images = len(logits)
    batch = dict(logits=logits, label=np.arange(images), mask=np.full(images, mask, np.float32))

    def measure(params, batch):
        one = lambda split: classify.accuracy(split, batch["label"], batch["mask"])  # noqa: E731
        return jax.vmap(one, in_axes=1)(batch["logits"])

    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    return OverSplits(name, measure, lambda: iter([batch])).run({}, mesh)


def test_mean_and_sample_deviation_over_splits():
    right = jnp.eye(4)
    wrong = right.at[:2].set(right[::-1][:2])
    found = measured(np.stack([right, wrong, wrong], 1), "val")
    assert found == pytest.approx(
        {"val/accuracy": np.mean([1, 0.5, 0.5]), "val/accuracy_std": np.std([1, 0.5, 0.5], ddof=1), "val/splits": 3}
    )


def test_a_split_whose_logits_are_no_numbers_has_no_hit():
    logits = np.stack([np.eye(4), np.full((4, 4), np.nan)], 1).astype(np.float32)
    assert measured(logits)["test/accuracy"] == 0.5


@pytest.mark.filterwarnings("error")
def test_no_image_no_number():
    found = measured(np.eye(4, dtype=np.float32)[:, None], mask=0.0)
    assert np.isnan(found["test/accuracy"]) and found["test/splits"] == 1
