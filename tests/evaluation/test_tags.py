"""Tag mAP: by hand, of exactly the first records, without a number where there is none, and as a stage reports it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from mae_pp_jax.commands.train import train
from mae_pp_jax.core import hosts
from mae_pp_jax.evaluation import tags
from tests.conftest import ROOT, TINY


def by_definition(scores, tags, positives):
    """Mean over tags on `positives` images of the mean, over these, of the precision down to their score."""
    found = []
    for tag in range(scores.shape[1]):
        carries = np.array([tag in own for own in tags])
        if carries.sum() >= positives:
            column = scores[:, tag]
            found.append(np.mean([carries[column >= own].mean() for own in column[carries]]))
    return np.mean(found), len(found)


@pytest.mark.parametrize(("positives", "wanted"), [(2, (2 * (1 + 2 / 3) / 2) / 2), (1, (1 + 2 / 3 + 1 / 4) / 3)])
def test_by_hand(positives, wanted):
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.4, 0.5], [0.7, 0.3, 0.5], [0.6, 0.2, 0.5]])
    carried = np.array([[0, -1], [1, -1], [0, 2], [1, -1]])
    # Tag 0 is right at ranks 1 and 3: (1/1 + 2/3) / 2. Tag 1 at ranks 1 and 3 likewise. All scores of tag 2, on one
    # image, are equal: its precision is the share of images that carry it.
    own = tags.carriers(carried)
    assert own == {0: [0, 2], 1: [1, 3], 2: [2]}
    mean, counted = tags.mean_average_precision(scores.T, own.values(), np.ones(4, bool), positives)
    assert (mean, counted) == (pytest.approx(wanted), {2: 2, 1: 3}[positives])
    assert mean == pytest.approx(by_definition(scores, carried, positives)[0])


IMAGES = np.random.default_rng(0).normal(size=(27, 5)).astype(np.float32)
CARRIED = [ids[ids >= 0] for ids in np.random.default_rng(1).integers(-1, 5, (27, 3))]


def measured(*, batch=8, devices=1, unreadable=(), images=1000, positives=4, name="test", scores=None):
    """What is found on `IMAGES`, an image's features being its scores, and the rows of batches that were read."""
    read = []

    def batches():
        for start in range(0, 27, batch):
            rows = np.arange(start, start + batch)
            read.append(rows)
            mask = (rows < 27) & ~np.isin(rows, unreadable)
            yield dict(image=IMAGES[rows % 27], mask=mask.astype(np.float32))

    mesh = jax.make_mesh((devices, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    scores = scores or (lambda params, batch: batch["image"] @ params)
    evaluator = tags.TagMap(name, scores, batches, lambda: iter(CARRIED), positives=positives, images=images)
    return evaluator.run(jnp.eye(5), mesh), read


@pytest.mark.parametrize("devices", [1, 8])
def test_padding_and_devices_do_not_count(devices):
    expected, counted = by_definition(IMAGES, CARRIED, 4)
    found, _ = measured(devices=devices, name="other")
    assert found == {"other/tag_map": pytest.approx(expected, abs=1e-6), "other/tags_measured": counted}


@pytest.mark.parametrize("images", [10, 16, 27, 40])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_the_first_records_are_measured_whatever_the_batch(images, batch):
    expected, counted = by_definition(IMAGES[:images], CARRIED[:images], 3)
    found, read = measured(images=images, batch=batch, positives=3)
    assert found == {"test/tag_map": pytest.approx(expected, abs=1e-6), "test/tags_measured": counted}
    assert len(read) == -(-min(images, 27) // batch)  # no more images than needed


def test_unreadable_images_are_left_out():
    rest = [i for i in range(20) if i not in (2, 11)]
    expected, counted = by_definition(IMAGES[rest], [CARRIED[i] for i in rest], 5)
    found, _ = measured(images=20, unreadable=(2, 11), positives=5)
    assert found == {"test/tag_map": pytest.approx(expected, abs=1e-6), "test/tags_measured": counted}


def test_only_tags_that_count_leave_the_devices(monkeypatch):
    """A vocabulary is large, and most of its tags are rare."""
    kept, gather = [], hosts.gather
    monkeypatch.setattr(hosts, "gather", lambda tree: kept.append(tree["scores"].shape[1]) or gather(tree))
    often = [tag for tag in range(5) if sum(tag in own for own in CARRIED) >= 12]
    assert 0 < len(often) < 5
    found, _ = measured(positives=12)
    assert set(kept) == {len(often)} and found["test/tags_measured"] == len(often)


def test_where_no_tag_counts_there_is_no_number(caplog):
    with caplog.at_level("WARNING"):
        found, read = measured(positives=28)
    assert np.isnan(found["test/tag_map"]) and found["test/tags_measured"] == 0 and not read
    assert "none of the hashtags is on as many as 28" in caplog.text


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_give_no_number(caplog, bad):
    with caplog.at_level("WARNING"):
        found, _ = measured(scores=lambda params, batch: (batch["image"] @ params).at[0, 1].set(bad))
    assert np.isnan(found["test/tag_map"]) and found["test/tags_measured"] > 0
    assert "not finite" in caplog.text


def test_the_most_probable_tag_is_no_hit_among_logits_that_are_no_numbers():
    hashtags = jnp.array([[0, 1, -1], [2, -1, -1], [-1, -1, -1]])
    logits = jnp.array([[0.0, 1.0, 0.5, 0.0]] * 3)
    assert tags.top_tag_hits(logits, hashtags).tolist() == [True, False, False]
    assert not tags.top_tag_hits(logits.at[:, 0].set(jnp.nan), hashtags).any()
    assert not tags.top_tag_hits(logits.at[:, 1].set(jnp.inf), hashtags).any()


def test_a_wsp_run_reports_it(tmp_path):
    result = train(str(ROOT / "configs/wsp/digits.py"), tmp_path / "run", {**TINY, "map_positives": "20"})
    assert 0 < result["metrics"]["test/tag_map"] < 1 and result["metrics"]["test/tags_measured"] >= 10
    assert 0.03 < result["metrics"]["test/untagged"] < 0.15
