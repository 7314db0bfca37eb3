"""What a run stops itself for: numbers that are not finite (for images that cannot be read see test_data.py)."""

import numpy as np

from mae_pp_jax.__main__ import main
from tests.conftest import TINY_MAE, arguments
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
