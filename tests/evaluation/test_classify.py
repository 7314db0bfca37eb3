"""Accuracy where the ranking is not plain: ties, logits that are no numbers, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mae_pp_jax.evaluation import classify

NAN, INF = float("nan"), float("inf")


def measured(logits, labels, mask=None) -> dict[str, float]:
    labels = jnp.asarray(labels)
    found = classify.accuracy(jnp.asarray(logits), labels, jnp.ones(len(labels)) if mask is None else mask)
    return {name: float(s) / float(w) for name, (s, w) in found.items()}


def test_as_a_sort_ranks_them():
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 4, (200, 11)).astype(np.float32), rng.integers(0, 11, 200)  # many ties
    order = np.asarray(jax.lax.top_k(logits, 5)[1])
    found = measured(logits, labels)
    assert found["accuracy"] == pytest.approx(np.mean(order[:, 0] == labels))
    assert found["accuracy_top5"] == pytest.approx(np.mean((order == labels[:, None]).any(-1)))
    assert 0 < found["accuracy"] < found["accuracy_top5"] < 1


@pytest.mark.parametrize("value", [0.0, -INF])
def test_logits_that_are_all_equal_are_a_guess(value):
    assert measured(np.full((100, 20), value), np.arange(100) % 20) == pytest.approx(
        {"accuracy": 1 / 20, "accuracy_top5": 5 / 20}
    )


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("where", [slice(None), 3, 7])
def test_an_image_with_a_logit_that_is_no_number_is_never_a_hit(bad, where):
    logits = np.eye(10, dtype=np.float32)
    logits[:, where] = bad
    assert measured(logits, np.arange(10)) == {"accuracy": 0.0, "accuracy_top5": 0.0}
    logits[:9] = np.eye(10, dtype=np.float32)[:9]  # the others count as they are
    assert measured(logits, np.arange(10)) == pytest.approx({"accuracy": 0.9, "accuracy_top5": 0.9})


def test_classes_that_are_ruled_out_and_images_without_a_class():
    logits = np.full((3, 8), -INF, np.float32)
    logits[:, 2] = 1.0
    assert measured(logits, [2, 5, -1]) == pytest.approx({"accuracy": 1 / 3, "accuracy_top5": 1 / 3})


def test_any_of_several_right_classes_is_a_hit():
    rng = np.random.default_rng(2)
    logits, labels = rng.integers(0, 4, (200, 11)).astype(np.float32), rng.integers(-1, 11, (200, 3))
    order = np.asarray(jax.lax.top_k(logits, 5)[1])
    hits = (order[:, :, None] == labels[:, None, :]).any(-1)
    found = measured(logits, labels)
    assert found["accuracy"] == pytest.approx(hits[:, 0].mean())
    assert found["accuracy_top5"] == pytest.approx(hits.any(-1).mean())


def test_padding_where_its_class_is_ruled_out_adds_no_loss():
    """Padding has label 0 and no class allowed."""
    allowed = jnp.array([[False, True, True], [False, False, False]])
    batch = {"label": jnp.array([1, 0]), "mask": jnp.array([1.0, 0.0]), "allowed": allowed}
    found = classify.of_batch(jnp.array([[9.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), batch)
    np.testing.assert_allclose(found["loss"], [np.log(2), 1], rtol=1e-6)
    np.testing.assert_array_equal(found["accuracy"], [1, 1])


def test_padding_does_not_count():
    logits = np.eye(8, dtype=np.float32)[[0, 1, 2, 3]]
    found = measured(logits, [0, 1, 5, 5], jnp.array([1.0, 1.0, 1.0, 0.0]))
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_classes_over_devices_measure_alike_and_are_not_gathered():
    rng = np.random.default_rng(1)
    logits, labels = rng.integers(0, 3, (16, 24)).astype(np.float32), rng.integers(0, 24, 16)
    logits[3, 20] = NAN
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    split = jax.device_put(logits, NamedSharding(mesh, PartitionSpec("data", "tensor")))
    rows = jax.device_put(labels, NamedSharding(mesh, PartitionSpec("data")))
    compiled = jax.jit(classify.accuracy).lower(split, rows, jnp.ones(16)).compile()
    assert "24]" not in compiled.as_text()
    found = compiled(split, rows, jnp.ones(16))
    assert {name: float(s / w) for name, (s, w) in found.items()} == pytest.approx(measured(logits, labels))
