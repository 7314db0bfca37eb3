"""Finished runs of all stages, each trained once, whichever test process asks for it first."""

import fcntl
import json
import os
import pathlib

import jax
import numpy as np
import pytest

from mae_pp_jax.commands.train import train
from mae_pp_jax.core import checkpoint, leaves
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.stages import registry
from tests.conftest import RECIPES, ROOT

SOURCES = {"mae": None, "wsp": "mae", "classify": "wsp", "linear": "wsp", "low_shot": "wsp"}


def recipe(name: str) -> str:
    return str(ROOT / f"configs/{name}/digits.py")


def stage_of(name: str, **overrides: str):
    """A tiny stage on the digits; `overrides` are config keys with __ for the dots."""
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    return registry.create(registry.resolve(config_lib.load_file(recipe(name)), {**RECIPES[name], **changed}))


def stage_of_run(folder: pathlib.Path):
    return registry.create(registry.resolve(json.loads((folder / "config.json").read_text()), saved=True))


def params_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The parameters that a run ended with: path → array."""
    step = checkpoint.find(folder)
    shapes = checkpoint.weights(folder, step, average=False)
    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole) for p, s in shapes.items()}
    return {p: np.asarray(v) for p, v in leaves.read(shapes, wanted).items()}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Name of a stage → (folder, result) of its tiny run in the chain MAE → WSP → {classify, linear, low_shot}."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def finished(name: str) -> tuple[pathlib.Path, dict]:
        source = SOURCES[name]
        start = {"init_from.run": str(finished(source)[0])} if source else {}
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a run that is finished is returned at once
            return base / name, train(recipe(name), base / name, {**RECIPES[name], **start})

    return finished
