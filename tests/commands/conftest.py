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


def timm_shapes(width, patch, tokens, blocks):
    """Key → shape of the weights of an encoder with a class token, as timm has them."""
    shapes = {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "pos_embed": (1, tokens, width),
        "cls_token": (1, 1, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(blocks):
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }.items():
            shapes[f"blocks.{i}.{name}"] = shape
    return shapes


def encoder_file(folder):
    """Writes the weights of an encoder for digits, 8×8 pixels in patches of 4, width 16, as timm has them."""
    rng, shapes = np.random.default_rng(0), timm_shapes(WIDTH, patch=4, tokens=5, blocks=2)
    weights = {key: rng.normal(size=shape).astype(np.float32) * 0.3 for key, shape in shapes.items()}
    save_file(weights, folder / "vit.safetensors")
    return folder / "vit.safetensors"
