"""Caches give the records of what they cache, and a disk cache survives kills, damage and company."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
import signal
import time

import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import caching, fields, images, source
from tests.data import batches
from tests.data.pictures import encode, noise


@pytest.fixture
def config(digits_config, tmp_path):
    return dataclasses.replace(digits_config, cache="disk", cache_dir=str(tmp_path / "cache"))


def _assert_same(cached, plain):
    assert len(cached) == len(plain)
    assert (cached.fields, cached.fingerprint) == (plain.fields, plain.fingerprint)
    np.testing.assert_array_equal(fields.labels(cached), fields.labels(plain))
    for index in range(0, len(plain), 7):
        ours, other = cached[index], plain[index]
        assert ours.keys() == other.keys() and ours["label"] == other["label"]
        np.testing.assert_array_equal(images.pixels(ours["image"]), images.pixels(other["image"]))
        if fields.names(plain, "hashtags"):
            np.testing.assert_array_equal(ours["hashtags"], other["hashtags"])
            assert ours["hashtags"].dtype == np.int32
        assert cached.describe(index) == plain.describe(index)


def test_records_from_disk_are_those_of_the_dataset_in_later_runs_too(config):
    plain = source.open_source(dataclasses.replace(config, cache="none"), "test")
    for _ in range(2):
        cached = source.open_source(config, "test")
        _assert_same(cached, plain)
        pairs = zip(cached.column("hashtags"), plain.column("hashtags"), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    (kept,) = pathlib.Path(config.cache_dir, "mae_pp_jax", "decoded").iterdir()
    assert kept.name == plain.fingerprint


def test_the_second_run_reads_no_image_of_the_dataset(tmp_path, config):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(encode(noise(i, 9, 8), "png"))
    config = dataclasses.replace(config, name=str(tmp_path / "photos"), crop="none", eval_fraction=0.0)
    first = next(batches.train_batches(source.open_source(config, "train"), config, global_batch=8, seed=0))
    for file in (tmp_path / "photos").glob("*/*.png"):
        size = file.stat().st_size
        file.write_bytes(b"\0" * size)  # same size and name: the same dataset, as far as can be told without reading it
    again = next(batches.train_batches(source.open_source(config, "train"), config, global_batch=8, seed=0))
    np.testing.assert_array_equal(again["image"], first["image"])


def _cut(file):
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [_cut, pathlib.Path.unlink])
@pytest.mark.parametrize("name", ["image/values.bin", "image/ends.bin", "label/values.bin", "hashtags/ends.bin"])
def test_a_damaged_cache_is_one_line(config, name, damage):
    source.open_source(config, "test")
    (file,) = pathlib.Path(config.cache_dir).glob(f"mae_pp_jax/decoded/*/{name}")
    damage(file)
    with pytest.raises(UserError, match="is damaged.* remove"):
        source.open_source(config, "test")


def test_a_cache_that_cannot_be_written_names_its_key(config, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="data.cache_dir: cannot write"):
        source.open_source(config, "test")


def test_data_that_cannot_be_read_is_not_blamed_on_the_cache(tmp_path):
    def make(half):
        raise UserError("data.name: cannot read /photos/a.png: Permission denied")

    with pytest.raises(UserError, match="^data.name: cannot read /photos/a.png"):
        caching.made_once("things", "abc", str(tmp_path), make)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _make(cache, started, seconds):
    def work(half):
        started.set()
        (half / "who").write_text(str(os.getpid()))
        time.sleep(seconds)

    folder = caching.made_once("things", "abc", cache, work)
    return (folder / "who").read_text()


def test_of_several_processes_one_works_and_a_killed_one_leaves_its_place_to_the_next(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        started = manager.Event()
        killed = context.Process(target=_make, args=(str(tmp_path), started, 600))
        killed.start()
        assert started.wait(60)
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            made_by = set(pool.map(_make, [str(tmp_path)] * 2, [manager.Event(), manager.Event()], [0.5, 0.5]))
    assert len(made_by) == 1
    assert [path.name for path in (tmp_path / "mae_pp_jax" / "things").iterdir()] == ["abc"]


def test_who_waits_for_another_process_is_told(tmp_path, caplog):
    caplog.set_level("INFO", logger="mae_pp_jax")
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, concurrent.futures.ThreadPoolExecutor(1) as pool:
        started = manager.Event()
        other = context.Process(target=_make, args=(str(tmp_path), started, 600))
        other.start()
        assert started.wait(60)
        waiting = pool.submit(_make, str(tmp_path), manager.Event(), 0)
        limit = time.monotonic() + 30
        try:
            while "waiting for another process, which makes the things of this dataset" not in caplog.messages:
                assert time.monotonic() < limit and not waiting.done()
                time.sleep(0.05)
        finally:
            os.kill(other.pid, signal.SIGKILL)
        assert waiting.result(60) == str(os.getpid())
