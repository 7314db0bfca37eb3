"""Runs on damaged data: images are replaced, counted and told; too many, or a shard that is gone, end the run."""

import json
import pathlib

import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.data import orders
from tests.conftest import TINY_MAE, arguments, command
from tests.data.pictures import encode, noise, whole_files
from tests.faults.conftest import rows as read_rows
from tests.faults.conftest import running, saved, trained, until

MAE = "--config=configs/mae/digits.py"
TRAINED = 40  # training records, in 12 steps of 32
DAMAGED = {
    "zeros": lambda data: bytes(len(data)),
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


@pytest.fixture
def pictures(tmp_path) -> pathlib.Path:
    """A folder of 2 × 20 training pictures, of every kind of file under one extension, and 2 × 6 to test on."""
    kinds = list(whole_files().values())
    for split, number in (("train", TRAINED // 2), ("test", 6)):
        for label in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for i in range(number):
                data = kinds[i] if i < len(kinds) else encode(noise(i, 8, 8), "png")
                (folder / f"{i:02}.jpg").write_bytes(data)
    return tmp_path / "pictures"


def _damage(pictures: pathlib.Path, split: str, numbers) -> list[pathlib.Path]:
    """Damages some files of class `dog`, each in another way."""
    files = [pictures / split / "dog" / f"{number:02}.jpg" for number in numbers]
    for file, way in zip(files, list(DAMAGED.values()) * len(files)):
        file.write_bytes(way(file.read_bytes()))
    return files


def _train(pictures, folder, **changes: str) -> list[str]:
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    overrides = {**TINY_MAE, "data.name": str(pictures), "data.threads": "4", **changed}
    return ["train", MAE, f"--workdir={folder}", *arguments(overrides)]


def test_whole_files_of_every_kind_are_read(pictures, tmp_path):
    assert main(_train(pictures, tmp_path / "run")) == 0
    counts = [row["data/unreadable"] for row in read_rows(tmp_path / "run") if "data/unreadable" in row]
    assert counts == [0] * 6


@pytest.mark.slow
def test_damaged_files_are_replaced_counted_and_named_also_after_a_kill(pictures, tmp_path, caplog):
    damaged = _damage(pictures, "train", (3, 9, 17))
    _damage(pictures, "test", (2,))
    longer = dict(train_for="40 steps", log_every="3 steps", eval_every="20 steps", checkpoint__every="7 steps")
    assert command(*_train(pictures, tmp_path / "whole", **longer)).returncode == 0
    log = (tmp_path / "whole" / "log.txt").read_text()
    for file in damaged:
        assert log.count(f"{file} cannot be read (") == 1
    bad = [20 + number for number in (3, 9, 17)]  # after the 20 cats
    positions = orders.Shuffled(TRAINED, seed=0).at(np.arange(40 * 32))
    rows = [row for row in read_rows(tmp_path / "whole") if "data/unreadable" in row]
    expected = [int(np.isin(positions[: row["step"] * 32], bad).sum()) for row in rows]
    assert [row["data/unreadable"] for row in rows] == expected and expected[-1] > 50

    with running(_train(pictures, tmp_path / "killed", **longer)) as process:
        until(process, trained(tmp_path / "killed", 12))
    assert not (tmp_path / "killed" / "result.json").exists()  # leaving the block has killed it
    assert command(*_train(pictures, tmp_path / "killed", **longer)).returncode == 0
    whole, killed = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def test_too_many_damaged_files_stop_the_run(pictures, tmp_path, capsys):
    damaged = _damage(pictures, "train", range(0, 20, 2))  # a quarter
    folder = tmp_path / "run"
    assert main(_train(pictures, folder, data__max_unreadable="0.05")) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("stopped: ") and "more than data.max_unreadable=0.05" in line
    assert sum(str(file) in line for file in damaged) == 3
    assert not (folder / "result.json").exists() and saved(folder) == []
    assert main(_train(pictures, tmp_path / "other", data__max_unreadable="0.5")) == 0
    assert json.loads((tmp_path / "other" / "result.json").read_text())["step"] == 12


def test_too_many_damaged_files_stop_an_evaluation(pictures, tmp_path, capsys):
    _damage(pictures, "test", range(6))
    assert main(_train(pictures, tmp_path / "run")) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("stopped: ") and "test/dog/" in line and "data.max_unreadable" in line
    assert saved(tmp_path / "run") == [4]  # the evaluation is at step 6
