"""A classifier of ants, bees and cows, and pictures of them; a file with the weights of an encoder."""

import json
import shutil

import cv2
import numpy as np
import pytest
from safetensors.numpy import save_file

from mae_pp_jax.commands.evaluate import evaluate
from mae_pp_jax.commands.train import train
from mae_pp_jax.core import storage
from mae_pp_jax.core.functional import unflatten
from mae_pp_jax.data import images as images_lib
from mae_pp_jax.stages import registry
from tests.conftest import ROOT, TINY
from tests.stages.conftest import params_of

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


def expected(run, files):
    """File → class → probability by the run `trained`, computed without the commands."""
    config = registry.resolve(storage.read_json(run / "config.json"), {"declared.classes": "3"}, saved=True)
    stage, params = registry.create(config), unflatten(params_of(run))
    pixels = np.stack([images_lib.center_crop(storage.read_bytes(file), (8, 8)) for file in files])
    mean, std = np.array(stage.config.data.mean), np.array(stage.config.data.std)
    logits = np.asarray(stage.model.apply(params, ((pixels / 255.0 - mean) / std).astype(np.float32)), np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return {str(file): dict(zip(COLOURS, own)) for file, own in zip(files, shares)}


WIDTH = 16


def encoder_file(folder):
    """Writes the weights of an encoder for digits, 8×8 pixels in patches of 4, width 16, as timm has them."""
    rng = np.random.default_rng(0)
    shapes = {
        "patch_embed.proj.weight": (WIDTH, 3, 4, 4),
        "patch_embed.proj.bias": (WIDTH,),
        "pos_embed": (1, 5, WIDTH),
        "cls_token": (1, 1, WIDTH),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for i in range(2):
        for name, shape in {
            "norm1.weight": (WIDTH,),
            "norm1.bias": (WIDTH,),
            "norm2.weight": (WIDTH,),
            "norm2.bias": (WIDTH,),
            "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.qkv.bias": (3 * WIDTH,),
            "attn.proj.weight": (WIDTH, WIDTH),
            "attn.proj.bias": (WIDTH,),
            "mlp.fc1.weight": (4 * WIDTH, WIDTH),
            "mlp.fc1.bias": (4 * WIDTH,),
            "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
            "mlp.fc2.bias": (WIDTH,),
        }.items():
            shapes[f"blocks.{i}.{name}"] = shape
    weights = {key: rng.normal(size=shape).astype(np.float32) * 0.3 for key, shape in shapes.items()}
    save_file(weights, folder / "vit.safetensors")
    return folder / "vit.safetensors"
