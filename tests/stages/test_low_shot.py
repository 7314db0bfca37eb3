"""Stage `low_shot`: draws of labelled images, and heads that do not know of one another."""

import jax
import numpy as np
import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import loop, partition
from mae_pp_jax.core import program as program_lib
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.stages import registry
from tests.conftest import RECIPES, ROOT


def trained(splits, **overrides):
    """Heads [splits, width, classes] and statistics after a few updates of eight images per head."""
    given = {"splits": str(splits), "global_batch": str(8 * splits), "data.flip": "true", "data.crop": "shift"}
    mapping = config_lib.load_file(str(ROOT / "configs/low_shot/digits.py"))
    stage = registry.create(registry.resolve(mapping, {**RECIPES["low_shot"], **given, **overrides}))
    mesh = partition.make_mesh(config_lib.resolve(partition.MeshConfig, {}), jax.devices()[:1])
    prog = program_lib.make(stage, mesh)
    state, _, _ = loop.initial_state(prog)
    update, batches = prog.compile(), stage.train_batches(0)
    for _ in range(5):
        state = update(state, partition.to_global(next(batches), mesh))
    return {p: np.asarray(v) for p, v in flatten(state.params).items() if not p.startswith("encoder/")}, stage


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_more_splits_change_nothing_of_the_first(name):
    """Neither their images, their order and flips, their learning rate, nor what clipping or LARS makes of it."""
    keys = {"optim.name": name, "optim.lr": "0.02", "optim.lr_batch": "8", "optim.clip": "0.5", "seed": "3"}
    few, stage = trained(2, **keys)
    many, larger = trained(5, **keys)
    for a, b in zip(stage.subsets, larger.subsets, strict=False):
        assert a.fingerprint == b.fingerprint
    assert np.ptp(few["heads/kernel"]) > 1e-3
    for path, value in few.items():
        np.testing.assert_allclose(many[path][:2], value, rtol=1e-5, atol=1e-6, err_msg=path)
