"""A classifier of ants, bees and cows, and pictures of them."""

import json
import shutil

import cv2
import numpy as np
import pytest

from mae_pp_jax.commands.evaluate import evaluate
from mae_pp_jax.commands.train import train
from tests.conftest import ROOT, TINY

RECIPE = str(ROOT / "configs/classify/digits.py")
SHORT = {**TINY, "train_for": "3 steps", "data.cache": "none", "optim.lr": "5e-3", "checkpoint.keep": "1"}
COLOURS = {"ant": (250, 10, 10), "bee": (10, 250, 10), "cow": (10, 10, 250)}


def photos(root, names: dict[str, str], size=8):
    """A folder with splits, of noisy pictures: name of a class → whose pictures it holds."""
    for split, first in (("train", 0), ("test", 100)):
        for name, shown in names.items():
            (root / split / name).mkdir(parents=True)
            for i in range(8):
                noise = np.random.default_rng(first + i).integers(-8, 8, (size, size, 3))
                pixels = np.clip(np.array(COLOURS[shown]) + noise, 0, 255).astype(np.uint8)
                cv2.imwrite(str(root / split / name / f"{i}.png"), pixels)
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(run trained on ant, bee and cow, its metrics on the pictures of bee and cow); the training data is gone."""
    base = tmp_path_factory.mktemp("animals")
    data = photos(base / "animals", {name: name for name in COLOURS})
    train(RECIPE, base / "run", {**SHORT, "data.name": str(data)})
    (base / "classes.json").write_text(json.dumps(["bee", "cow"]))
    found = evaluate(base / "run", None, {"evals.test.classes": str(base / "classes.json")})
    shutil.rmtree(data)
    return base / "run", found
