"""Batches depend on (seed, step) alone."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from mae_pp_jax.core.errors import RunStopped, UserError
from mae_pp_jax.data import images, orders, pipeline, source
from tests.data.pictures import encode, noise


def _take(batches, number):
    return list(itertools.islice(batches, number))


def _assert_equal(ours, others):
    assert len(ours) == len(others) and ours
    for a, b in zip(ours, others):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module", params=["shift", "random_resized"])
def config(request, digits_config):
    return dataclasses.replace(digits_config, crop=request.param)


def test_fields_shapes_and_types(digits, config):
    (batch,) = _take(pipeline.train_batches(digits, config, global_batch=6, seed=0), 1)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "image": ((6, 8, 8, 3), "uint8"),
        "label": ((6,), "int32"),
        "hashtags": ((6, config.max_tags), "int32"),
        "record": ((6,), "int64"),
        "unreadable": ((6,), "int32"),
    }
    for image, label, tags, index in zip(*(batch[name] for name in ("image", "label", "hashtags", "record"))):
        record = digits[index]
        assert label == record["label"]
        np.testing.assert_array_equal(tags[tags >= 0], record["hashtags"])
        assert image.shape == record["image"].shape


def test_start_at_a_step_gives_the_same_batches_as_running_up_to_it(digits, config):
    from_zero = _take(pipeline.train_batches(digits, config, global_batch=100, seed=3), 20)
    from_seven = _take(pipeline.train_batches(digits, config, global_batch=100, seed=3, start_step=7), 13)
    _assert_equal(from_zero[7:], from_seven)  # 20 steps of 100 reach into the second epoch


@pytest.mark.parametrize("processes", [2, 4])
def test_global_batch_does_not_depend_on_the_number_of_processes(digits, config, processes):
    whole = _take(pipeline.train_batches(digits, config, global_batch=200, seed=1, start_step=5), 4)
    parts = [
        _take(
            pipeline.train_batches(
                digits, config, global_batch=200, seed=1, start_step=5, process_index=p, process_count=processes
            ),
            4,
        )
        for p in range(processes)
    ]
    _assert_equal(whole, [{k: np.concatenate([b[k] for b in step]) for k in step[0]} for step in zip(*parts)])


def test_threads_do_not_change_batches(digits, config):
    batches = [
        _take(pipeline.train_batches(digits, dataclasses.replace(config, threads=t), global_batch=70, seed=1), 5)
        for t in (0, 1, 5)
    ]
    _assert_equal(batches[0], batches[1])
    _assert_equal(batches[0], batches[2])


def test_seed_changes_order_and_crops(digits, config):
    a, b = (_take(pipeline.train_batches(digits, config, global_batch=64, seed=s), 1)[0] for s in (0, 1))
    assert not np.array_equal(a["record"], b["record"])


@pytest.mark.parametrize("total", [1, 2, 7, 64, 1437])
def test_each_epoch_visits_every_record_once_in_an_order_of_its_own(total):
    order = orders.Shuffled(total, seed=2)
    steps = [order.at(np.arange(5 * s, 5 * s + 5)) for s in range(total)]  # 5 epochs
    epochs = np.concatenate(steps).reshape(5, total)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(total))
    if total > 7:
        assert len({tuple(epoch) for epoch in epochs}) == 5


def test_order_is_spread_evenly(digits):
    """Where a record comes in the epoch says nothing about which it is: counts over 10 × 10 parts are as by chance."""
    total, epochs = len(digits), 200
    records = orders.Shuffled(total, seed=0).at(np.arange(epochs * total)).reshape(epochs, total)
    places = np.broadcast_to(np.arange(total), records.shape)
    counts, *_ = np.histogram2d(places.ravel(), records.ravel(), bins=10)
    chance = epochs * total / 100
    # Each count scatters by about the square root of its expectation.
    assert np.abs(counts - chance).max() < 5 * np.sqrt(chance)
    assert np.abs(counts - chance).std() > 0.2 * np.sqrt(chance)
    neighbours = np.corrcoef(records[:, 1:].ravel(), records[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.01


def test_records_are_those_of_the_order(digits, config):
    batch = _take(pipeline.train_batches(digits, config, global_batch=50, seed=9, start_step=40), 1)[0]
    np.testing.assert_array_equal(batch["record"], orders.Shuffled(len(digits), seed=9).at(np.arange(2000, 2050)))


def test_crops_differ_between_epochs(digits, config):
    few = source.Subset(digits, np.arange(8))
    batches = _take(pipeline.train_batches(few, config, global_batch=8, seed=0), 6)
    by_record = [batch["image"][np.argsort(batch["record"])] for batch in batches]
    assert len({images.tobytes() for images in by_record}) == 6


@pytest.mark.parametrize("global_batch, processes", [(128, 1), (128, 4), (360, 2), (500, 1)])
def test_evaluation_sees_every_record_once_and_masks_the_rest(digits_config, global_batch, processes):
    held_out = source.open_source(digits_config, "test")
    batches = [
        list(
            pipeline.eval_batches(
                held_out, digits_config, global_batch=global_batch, process_index=p, process_count=processes
            )
        )
        for p in range(processes)
    ]
    assert {len(b) for b in batches} == {-(-len(held_out) // global_batch)}
    flat = [b for process in batches for b in process]
    assert all(b["image"].shape == (global_batch // processes, 8, 8, 3) for b in flat)
    assert sum(b["mask"].sum() for b in flat) == len(held_out)
    seen = np.concatenate([b["record"][b["mask"] == 1] for b in flat])
    np.testing.assert_array_equal(np.sort(seen), np.arange(len(held_out)))


@pytest.mark.parametrize("crop, share", [("center", 0.5), ("squeeze", 1.0)])
def test_evaluation_crops_as_the_config_says(digits_config, monkeypatch, crop, share):
    config = dataclasses.replace(digits_config, eval_crop=crop, eval_share=share)
    held_out = source.open_source(config, "test")
    wide = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    monkeypatch.setattr(type(held_out), "__getitem__", lambda self, i: {"image": wide, "label": 0, "hashtags": ()})
    batch = next(pipeline.eval_batches(held_out, config, global_batch=8))
    wanted = images.squeeze(wide, 8) if crop == "squeeze" else images.center_crop(wide, 8, share)
    np.testing.assert_array_equal(batch["image"][0], wanted)


def test_batch_that_processes_cannot_share_is_refused(digits, digits_config):
    with pytest.raises(UserError, match="global_batch: 10 cannot be divided among 4 processes"):
        pipeline.train_batches(digits, digits_config, global_batch=10, seed=0, process_count=4)


@pytest.fixture
def damaged(tmp_path, digits_config):
    """A folder of 2 × 30 images with every tenth damaged: (its training source, config, indices of the damaged)."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(30):
            data = encode(noise(i, 8, 8), "png")
            (tmp_path / name / f"{i:02}.png").write_bytes(data[: len(data) // 2] if i % 10 == 3 else data)
    config = dataclasses.replace(digits_config, name=str(tmp_path), eval_fraction=0.5, crop="none", cache="none")
    records = source.open_source(config, "train")
    return records, config, [i for i in range(len(records)) if records.describe(i)[-5] == "3"]


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_an_unreadable_image_is_replaced_by_the_next_and_counted(damaged, caplog, cache, tmp_path_factory):
    records, config, broken = damaged
    folder = str(tmp_path_factory.mktemp("cache"))
    records = source.open_source(dataclasses.replace(config, cache=cache, cache_dir=folder), "train")
    total = len(records)
    assert broken
    batches = _take(pipeline.train_batches(records, config, global_batch=6, seed=4), total)  # 6 epochs
    order = orders.Shuffled(total, seed=4).at(np.arange(6 * total))
    used, unreadable = (np.concatenate([b[name] for b in batches]) for name in ("record", "unreadable"))
    np.testing.assert_array_equal(unreadable, np.isin(order, broken))
    np.testing.assert_array_equal(used, np.where(unreadable, (order + 1) % total, order))
    images_seen = np.concatenate([b["image"] for b in batches])
    for image, label, index in zip(images_seen, np.concatenate([b["label"] for b in batches]), used):
        assert label == records[index]["label"]
        np.testing.assert_array_equal(image, images.pixels(records[index]["image"]))
    for index in broken:
        assert sum(records.describe(index) in message for message in caplog.messages) == 1
    again = _take(pipeline.train_batches(records, config, global_batch=6, seed=4, start_step=13), total - 13)
    _assert_equal(batches[13:], again)


def test_an_unreadable_image_is_left_out_of_an_evaluation(damaged):
    records, config, broken = damaged
    config = dataclasses.replace(config, max_unreadable=0.5)
    batches = list(pipeline.eval_batches(records, config, global_batch=8))
    seen = np.concatenate([b["record"][b["mask"] == 1] for b in batches])
    np.testing.assert_array_equal(seen, np.setdiff1d(np.arange(len(records)), broken))
    with pytest.raises(RunStopped, match=r"could not be read, more than data.max_unreadable=0.0: .*/[ab]/\d3.png"):
        list(pipeline.eval_batches(records, dataclasses.replace(config, max_unreadable=0.0), global_batch=8))


def test_data_that_is_damaged_all_over_ends_the_run_from_a_reader_thread(tmp_path, digits_config):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.png").write_bytes(b"broken")
    config = dataclasses.replace(digits_config, name=str(tmp_path))
    broken = source.open_source(config, "train")
    with pytest.raises(RunStopped, match=r"images in a row cannot be read, from .*/[ab]/\d.png"):
        next(pipeline.train_batches(broken, config, global_batch=2, seed=0))


class _HalfLabelled(source.Subset):
    """Digits of which every other one lacks its label, as `data build` writes them."""

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return record | {"label": -1} if index % 2 else record


@pytest.mark.parametrize("batches", [pipeline.eval_batches, functools.partial(pipeline.train_batches, seed=0)])
def test_missing_labels_are_unknown_to_those_who_need_none_and_an_error_to_others(digits, digits_config, batches):
    records = _HalfLabelled(digits, np.arange(20))
    (batch,) = _take(batches(records, digits_config, global_batch=20), 1)
    np.testing.assert_array_equal(batch["label"] < 0, batch["record"] % 2 == 1)
    with pytest.raises(UserError, match="record [0-9]*[13579] has no label"):
        _take(batches(records, digits_config, global_batch=20, labelled=True), 1)
