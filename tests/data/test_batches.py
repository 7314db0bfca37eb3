"""Batches depend on (seed, step) alone."""

import dataclasses
import itertools

import numpy as np
import pytest

from mae_pp_jax.core.errors import RunStopped, UserError
from mae_pp_jax.data import evals, fields, images, orders, pipeline, source
from tests.data import batches
from tests.data.pictures import encode, noise


def _take(found, number):
    return list(itertools.islice(found, number))


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
    (batch,) = _take(batches.train_batches(digits, config, global_batch=6, seed=0), 1)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "image": ((6, 8, 8, 3), "uint8"),
        "label": ((6,), "int32"),
        "hashtags": ((6, batches.MAX_TAGS), "int32"),
        "record": ((6,), "int64"),
        "unreadable": ((6,), "int32"),
    }
    for image, label, tags, index in zip(*(batch[name] for name in ("image", "label", "hashtags", "record"))):
        record = digits[index]
        assert label == record["label"]
        np.testing.assert_array_equal(tags[tags >= 0], record["hashtags"])
        assert image.shape == record["image"].shape


def test_start_at_a_step_gives_the_same_batches_as_running_up_to_it(digits, config):
    from_zero = _take(batches.train_batches(digits, config, global_batch=100, seed=3), 20)
    from_seven = _take(batches.train_batches(digits, config, global_batch=100, seed=3, start_step=7), 13)
    _assert_equal(from_zero[7:], from_seven)  # 20 steps of 100 reach into the second epoch


@pytest.mark.parametrize("processes", [2, 4])
def test_global_batch_does_not_depend_on_the_number_of_processes(digits, config, processes):
    whole = _take(batches.train_batches(digits, config, global_batch=200, seed=1, start_step=5), 4)
    parts = [
        _take(
            batches.train_batches(
                digits, config, global_batch=200, seed=1, start_step=5, process_index=p, process_count=processes
            ),
            4,
        )
        for p in range(processes)
    ]
    _assert_equal(whole, [{k: np.concatenate([b[k] for b in step]) for k in step[0]} for step in zip(*parts)])


def test_threads_do_not_change_batches(digits, config):
    found = [
        _take(batches.train_batches(digits, dataclasses.replace(config, threads=t), global_batch=70, seed=1), 5)
        for t in (0, 1, 5)
    ]
    _assert_equal(found[0], found[1])
    _assert_equal(found[0], found[2])


def test_seed_changes_order_and_crops(digits, config):
    a, b = (_take(batches.train_batches(digits, config, global_batch=64, seed=s), 1)[0] for s in (0, 1))
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
    batch = _take(batches.train_batches(digits, config, global_batch=50, seed=9, start_step=40), 1)[0]
    np.testing.assert_array_equal(batch["record"], orders.Shuffled(len(digits), seed=9).at(np.arange(2000, 2050)))


def test_crops_differ_between_epochs(digits, config):
    few = source.Subset(digits, np.arange(8))
    found = _take(batches.train_batches(few, config, global_batch=8, seed=0), 6)
    by_record = [batch["image"][np.argsort(batch["record"])] for batch in found]
    assert len({images.tobytes() for images in by_record}) == 6


@pytest.mark.parametrize("global_batch, processes", [(128, 1), (128, 4), (360, 2), (500, 1)])
def test_evaluation_sees_every_record_once_and_masks_the_rest(digits_config, global_batch, processes):
    held_out = source.open_source(digits_config, "test")
    found = [
        list(
            batches.eval_batches(
                held_out, digits_config, global_batch=global_batch, process_index=p, process_count=processes
            )
        )
        for p in range(processes)
    ]
    assert {len(b) for b in found} == {-(-len(held_out) // global_batch)}
    flat = [b for process in found for b in process]
    assert all(b["image"].shape == (global_batch // processes, 8, 8, 3) for b in flat)
    assert sum(b["mask"].sum() for b in flat) == len(held_out)
    seen = np.concatenate([b["record"][b["mask"] == 1] for b in flat])
    np.testing.assert_array_equal(np.sort(seen), np.arange(len(held_out)))


@pytest.mark.parametrize("crop, share", [("center", 0.5), ("squeeze", 1.0)])
def test_evaluation_crops_as_the_config_says(digits_config, monkeypatch, crop, share):
    held_out = source.open_source(digits_config, "test")
    wide = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    record = {"image": wide, "label": 0, "hashtags": np.zeros(0, np.int32)}
    monkeypatch.setattr(type(held_out), "__getitem__", lambda self, i: record)
    config = evals.EvalConfig(crop=crop, share=share)
    batch = next(batches.eval_batches(held_out, digits_config, config, global_batch=8))
    wanted = images.squeeze(wide, (8, 8)) if crop == "squeeze" else images.center_crop(wide, (8, 8), share)
    np.testing.assert_array_equal(batch["image"][0], wanted)


def test_batch_that_processes_cannot_share_is_refused(digits, digits_config):
    with pytest.raises(UserError, match="global_batch: 10 cannot be divided among 4 processes"):
        batches.train_batches(digits, digits_config, global_batch=10, seed=0, process_count=4)


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
    found = _take(batches.train_batches(records, config, global_batch=6, seed=4), total)  # 6 epochs
    order = orders.Shuffled(total, seed=4).at(np.arange(6 * total))
    used, unreadable = (np.concatenate([b[name] for b in found]) for name in ("record", "unreadable"))
    np.testing.assert_array_equal(unreadable, np.isin(order, broken))
    np.testing.assert_array_equal(used, np.where(unreadable, (order + 1) % total, order))
    images_seen = np.concatenate([b["image"] for b in found])
    for image, label, index in zip(images_seen, np.concatenate([b["label"] for b in found]), used):
        assert label == records[index]["label"]
        np.testing.assert_array_equal(image, images.pixels(records[index]["image"]))
    for index in broken:
        assert sum(records.describe(index) in message for message in caplog.messages) == 1
    again = _take(batches.train_batches(records, config, global_batch=6, seed=4, start_step=13), total - 13)
    _assert_equal(found[13:], again)


def test_an_unreadable_image_is_left_out_of_an_evaluation(damaged):
    records, config, broken = damaged
    config = dataclasses.replace(config, max_unreadable=0.5)
    found = list(batches.eval_batches(records, config, global_batch=8))
    seen = np.concatenate([b["record"][b["mask"] == 1] for b in found])
    np.testing.assert_array_equal(seen, np.setdiff1d(np.arange(len(records)), broken))
    with pytest.raises(RunStopped, match=r"could not be read, more than data.max_unreadable=0.0: .*/[ab]/\d3.png"):
        list(batches.eval_batches(records, dataclasses.replace(config, max_unreadable=0.0), global_batch=8))


def test_data_that_is_damaged_all_over_ends_the_run_from_a_reader_thread(tmp_path, digits_config):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.png").write_bytes(b"broken")
    config = dataclasses.replace(digits_config, name=str(tmp_path))
    broken = source.open_source(config, "train")
    with pytest.raises(RunStopped, match=r"records in a row cannot be read, from .*/[ab]/\d.png"):
        next(batches.train_batches(broken, config, global_batch=2, seed=0))


class _Sentences(fields.Wrapper):
    """Records without any image: texts of some words."""

    def __init__(self):
        self.fields = {"text": fields.Text()}

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"text": " ".join(["word"] * index)}

    def describe(self, index):
        return f"sentence {index}"


@pytest.mark.parametrize("threads", [1, 3])
def test_records_of_any_kind_become_what_load_makes_of_them(threads):
    spec = {"words": ((), np.int32), "draws": ((2,), np.float64)}

    def load(record, draws=np.zeros(2)):
        return {"words": len(record["text"].split()), "draws": draws[:2], "unused": None}

    options = dict(global_batch=4, threads=threads)
    stream = pipeline.train_batches(_Sentences(), orders.Shuffled(12, 0), load, spec, seed=0, draws=2, **options)
    batch = next(stream)
    assert batch.keys() == {"words", "draws", "record", "unreadable"}
    np.testing.assert_array_equal(batch["words"], batch["record"])
    assert len(set(batch["draws"].ravel())) == 8 and batch["draws"].dtype == np.float64
    found = list(pipeline.eval_batches(_Sentences(), load, spec, **options))
    np.testing.assert_array_equal(np.concatenate([b["words"] for b in found]), np.arange(12))


def test_a_record_that_does_not_do_is_named(digits):
    def load(record, draws=None):
        raise UserError("has no caption; choose another dataset")

    spec = {"label": ((), np.int32)}
    options = dict(global_batch=4, threads=1)
    for stream in (
        pipeline.train_batches(digits, orders.Shuffled(8, 0), load, spec, seed=0, draws=0, **options),
        pipeline.eval_batches(digits, load, spec, **options),
    ):
        with pytest.raises(UserError, match=r"^data: digits_hashtags.* record \d+ has no caption; choose"):
            next(stream)
