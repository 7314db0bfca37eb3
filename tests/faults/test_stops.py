"""What a run stops itself for: numbers that are not finite, images that cannot be read."""

import json

import cv2
import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from tests.conftest import TINY_MAE, arguments, command
from tests.faults.conftest import rows, saved

MAE = "--config=configs/mae/digits.py"


def test_a_loss_that_is_not_finite(tmp_path, capsys):
    folder = tmp_path / "run"
    # Weights grow tenfold a step, so that the gradient passes the range of float32 after the first few.
    explode = {"optim.lr": "10", "optim.lr_batch": "0", "optim.warmup": "0 steps", "optim.weight_decay": "1"}
    every = {"log_every": "1 steps", "checkpoint.every": "2 steps", "checkpoint.keep": "9"}
    assert main(["train", MAE, f"--workdir={folder}", *arguments({**TINY_MAE, **explode, **every})]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    bad = len(rows(folder))
    assert line.startswith(f"stopped: step {bad}: ") and "not finite" in line
    assert "digits_hashtags" in line and "record " in line
    assert saved(folder) == list(range(2, bad + 1, 2)) != []
    assert all(np.isfinite(value) for row in rows(folder) for value in row.values())
    assert not (folder / "result.json").exists()


@pytest.fixture
def pictures(tmp_path):
    """The path of a picture's file in a folder of 2 × 20 pictures, split into train and test."""

    def path(split, label, index):
        return tmp_path / "pictures" / split / label / f"{index}.png"

    for split in ("train", "test"):
        for label in ("cat", "dog"):
            path(split, label, 0).parent.mkdir(parents=True)
            for index in range(10):
                picture = np.random.default_rng(index).integers(0, 255, (8, 8, 3), np.uint8)
                cv2.imwrite(str(path(split, label, index)), picture)
    return path


def test_an_unreadable_training_image(pictures, tmp_path):
    broken = pictures("train", "dog", 7)
    broken.write_bytes(broken.read_bytes()[:40])
    folder = tmp_path / "run"
    data = {"data.name": str(tmp_path / "pictures"), "data.threads": "4"}
    done = command("train", MAE, f"--workdir={folder}", *arguments({**TINY_MAE, **data}))
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line for line in lines if "rror" in line] == lines[-1:]
    assert lines[-1].startswith("error: data: ") and str(broken) in lines[-1] and "remove or replace" in lines[-1]
    assert "Traceback" not in done.stderr and not (folder / "result.json").exists()


def test_an_unreadable_evaluation_image(pictures, tmp_path, capsys):
    folder, broken = tmp_path / "run", pictures("test", "cat", 3)
    train = ["train", MAE, f"--workdir={folder}", *arguments({**TINY_MAE, "data.name": str(tmp_path / "pictures")})]
    good = broken.read_bytes()
    broken.write_bytes(bytes(len(good)))
    assert main(train) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: data: ") and str(broken) in line
    assert saved(folder) == [4]  # the evaluation is at step 6
    broken.write_bytes(good)
    assert main(train) == 0
    assert json.loads((folder / "result.json").read_text())["step"] == 12
