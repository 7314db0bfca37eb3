"""Configs of stages: keys that have no effect are refused, and every recipe builds."""

import jax
import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import partition
from mae_pp_jax.core import program as program_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.stages import registry
from tests.conftest import ROOT

STAGES = ("mae", "wsp", "classify", "linear", "low_shot")


def digits(name):
    return config_lib.load_file(str(ROOT / f"configs/{name}/digits.py"))


# (stages, keys, the key that is refused, why); the recipes of the digits crop by shift, those on frozen encoders not.
UNUSED = [
    (STAGES, {"optim.name": "sgd", "optim.b2": "0.9"}, "optim.b2", "optim.name=adamw"),
    (STAGES, {"optim.name": "lars", "optim.moment_dtype": "bfloat16"}, "optim.moment_dtype", "optim.name=adamw"),
    (STAGES, {"optim.shape": "constant", "optim.min_lr": "1e-3"}, "optim.min_lr", "optim.shape=cosine"),
    (STAGES, {"init_from.step": "10"}, "init_from.step", "init_from.run"),
    (STAGES, {"data.crop": "none", "data.shift": "2"}, "data.shift", "data.crop=shift"),
    (STAGES, {"data.crop_scale": "0.5,1.0"}, "data.crop_scale", "data.crop=random_resized"),
    (STAGES, {"data.crop_ratio": "1.0,1.0"}, "data.crop_ratio", "data.crop=random_resized"),
    (STAGES, {"data.resample_t": "0.1"}, "data.resample_t", "data.resample=sqrt"),
    (STAGES[:4], {"data.resample": "sqrt", "data.resample_length": "2"}, "data.resample_length", "data.resample=swag"),
    (("mae", *STAGES[2:]), {"data.max_tags": "4"}, "data.max_tags", "stage wsp"),
    (("linear", "low_shot"), {"model.drop_path": "0.1"}, "model.drop_path", "frozen"),
    (("low_shot",), {"data.resample": "sqrt"}, "data.resample", "equally often"),
    (("mae",), {"model.pool": "mean"}, "model.pool", "nothing is pooled"),
    (("wsp",), {"map_positives": "0", "map_images": "5"}, "map_images", "map_positives=0"),
]


@pytest.mark.parametrize("stages, overrides, key, why", UNUSED, ids=[key for _, _, key, _ in UNUSED])
def test_a_key_that_would_do_nothing_is_refused(stages, overrides, key, why):
    for name in stages:
        with pytest.raises(UserError, match=rf"config\.{key}: .* has no effect: .*{why}.*leave it out") as refused:
            registry.resolve(digits(name), overrides)
        assert "\n" not in str(refused.value)
        assert registry.resolve(digits(name), overrides, saved=True)  # the config of an old run


@pytest.mark.parametrize(
    "name, overrides",
    [
        ("mae", {"model.drop_path": "0.1", "data.shift": "2"}),
        ("wsp", {"data.max_tags": "4", "data.resample": "sqrt", "data.resample_t": "0.1", "map_images": "5"}),
        ("linear", {"data.crop": "random_resized", "data.crop_scale": "0.5,1.0", "data.resample": "swag"}),
        ("low_shot", {"optim.name": "adamw", "optim.b2": "0.9", "optim.min_lr": "1e-4"}),
        ("classify", {"optim.name": "sgd", "optim.shape": "constant"}),  # the stage's own b2 and min_lr stay unused
        ("classify", {"init_from.run": "elsewhere", "init_from.step": "10"}),
    ],
)
def test_keys_that_do_something_are_taken(name, overrides):
    registry.resolve(digits(name), overrides)


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((ROOT / "configs").glob("*/*.py")) if p.parent.name != "pipelines"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_every_recipe_builds_and_its_step_has_shapes(path):
    """Parameters, optimizer and one step of every config, by abstract evaluation."""
    stage = registry.create(registry.resolve(config_lib.load_file(str(path))))
    mesh = partition.make_mesh(config_lib.resolve(partition.MeshConfig, {}), jax.devices()[:1])
    prog = program_lib.make(stage, mesh)
    if not stage.trained:
        return
    batch = stage.batch_spec()
    after = jax.eval_shape(prog.step, prog.shapes, batch)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), prog.shapes)
