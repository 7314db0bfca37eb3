"""Tag mAP: by hand, under padding, and as a stage reports it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from mae_pp_jax.commands.train import train
from mae_pp_jax.evaluation import tags
from tests.conftest import ROOT, TINY


def test_by_hand():
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.4, 0.5], [0.7, 0.3, 0.5], [0.6, 0.2, 0.5]])
    carried = np.array([[0, -1], [1, -1], [0, 2], [1, -1]])
    # Tag 0 is right at ranks 1 and 3: (1/1 + 2/3) / 2. Tag 1 at ranks 1 and 3 likewise. Tag 2 is on one image only.
    mean, counted = tags.mean_average_precision(scores, carried, positives=2)
    assert (mean, counted) == (pytest.approx((1 + 2 / 3) / 2), 2)
    # All scores of tag 2 are equal: its precision is the share of images that carry it.
    mean, counted = tags.mean_average_precision(scores, carried, positives=1)
    assert (mean, counted) == (pytest.approx((2 * (1 + 2 / 3) / 2 + 1 / 4) / 3), 3)
    mean, counted = tags.mean_average_precision(scores, carried, positives=3)
    assert np.isnan(mean) and counted == 0


@pytest.mark.parametrize("devices", [1, 8])
def test_padding_and_devices_do_not_count(devices):
    rng = np.random.default_rng(0)
    images, carried = rng.normal(size=(27, 5)), rng.integers(-1, 5, (27, 3))
    expected, counted = tags.mean_average_precision(images @ np.eye(5), carried, positives=4)

    def batches():
        for start in range(0, 32, 8):
            rows = np.arange(start, start + 8)
            yield dict(
                image=images[rows % 27].astype(np.float32),
                hashtags=carried[rows % 27].astype(np.int32),
                mask=(rows < 27).astype(np.float32),
            )

    mesh = jax.make_mesh((devices, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    evaluator = tags.TagPrecision("test", lambda params, b: b["image"] @ params, batches, 4, most_images=1000)
    found = evaluator.run(jnp.eye(5), mesh)
    assert found == {"test/tag_map": pytest.approx(expected, abs=1e-6), "test/tags_measured": counted}


def test_a_wsp_run_reports_it(tmp_path):
    result = train(str(ROOT / "configs/wsp/digits.py"), tmp_path / "run", {**TINY, "map_positives": "20"})
    assert 0 < result["metrics"]["test/tag_map"] < 1 and result["metrics"]["test/tags_measured"] >= 10
    assert 0.03 < result["metrics"]["test/untagged"] < 0.15
