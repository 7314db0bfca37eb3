"""Models of runs that start from other runs: what is not stated comes from there, and what cannot fit is refused."""

import json

import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import pipeline, runs
from mae_pp_jax.commands.train import train
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.stages import registry
from tests.conftest import ROOT, TINY, arguments
from tests.stages.conftest import params_of

MODEL = ("model.size", "model.width", "model.depth", "model.heads")
SHORT = {key: value for key, value in TINY.items() if key not in MODEL} | {"train_for": "1 steps"}
# Of a run on grey images of 32 pixels.
SOURCE = dict(
    stage="mae",
    model=dict(size="Ti/16", mlp=700, norm_eps=1e-5, cls_token=True, positions="sincos"),
    mae=dict(decoder_width=96, decoder_depth=2, decoder_heads=4, mask_ratio=0.5),
    data=dict(name="photos", image_size=32, mean=(0.5, 0.5, 0.5)),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of a run that has just begun."""
    folder = tmp_path_factory.mktemp("source")
    storage.write_json(folder / "config.json", config_lib.to_dict(registry.resolve(SOURCE)))
    return folder


def recipe(name: str) -> str:
    return str(ROOT / f"configs/{name}/digits.py")


def resolved(name, overrides, mapping=None):
    config = runs.resolved(mapping or config_lib.load_file(recipe(name)), overrides)
    return config_lib.to_dict(config)


@pytest.mark.parametrize("name", ["wsp", "classify", "linear", "low_shot"])
def test_the_model_is_that_of_the_run(source, name):
    found = resolved(name, {"init_from.run": str(source)})
    model = dict(size="Ti/16", width=0, depth=0, heads=0, mlp=700, norm_eps=1e-5)
    assert model.items() <= found["model"].items()
    assert found["data"]["mean"] == [0.5, 0.5, 0.5] and found["data"]["std"] == [0.229, 0.224, 0.225]
    assert found["model"]["positions"] == "learned"  # trained from here on, as without the key
    assert found["data"]["image_size"] == 8  # the recipe says so


def test_what_a_recipe_has_for_random_weights_counts_without_a_run(source):
    found = resolved("linear", {})["model"]
    assert (found["size"], found["width"], found["depth"], found["heads"]) == ("Ti/2", 96, 4, 4)
    mapping = dict(stage="linear", from_scratch=dict(model=dict(width=96, depth=4)), model=dict(depth=3))
    found = resolved("linear", {"model.heads": "2"}, mapping)["model"]
    assert (found["width"], found["depth"], found["heads"]) == (96, 3, 2)


def test_keys_that_a_config_leaves_open(source):
    mapping = dict(stage="classify", init_from=dict(run=str(source)))
    assert resolved("classify", {}, mapping)["data"]["image_size"] == 32
    mapping = dict(stage="mae", init_from=dict(run=str(source)), mae=dict(decoder_depth=3))
    found = resolved("mae", {}, mapping)
    wanted = dict(decoder_width=96, decoder_depth=3, decoder_heads=4, mask_ratio=0.75)
    assert wanted.items() <= found["mae"].items() and found["model"]["positions"] == "sincos"


@pytest.mark.parametrize(
    "stated",
    [
        {"model.size": "Ti/16"},
        {"model.width": "192", "model.depth": "12", "model.heads": "3"},
        {"model.size": "Ti/16", "model.width": "0", "model.heads": "3"},
        {"model.size": "S/16", "model.width": "192", "model.heads": "3", "model.mlp": "700"},
        {"model.norm_eps": "1e-5", "model.cls_token": "false", "model.pool": "mean", "model.drop_path": "0.2"},
        {"data.image_size": "64", "data.mean": "0.4,0.4,0.4"},
    ],
)
def test_the_same_may_be_stated(source, stated):
    found = resolved("classify", {"init_from.run": str(source), "data.image_size": "32", **stated})
    assert (found["model"]["mlp"], found["model"]["norm_eps"]) == (700, 1e-5)


@pytest.mark.parametrize(
    "name, stated, said, fit",
    [
        ("wsp", {"model.size": "B/16"}, "width 768, heads 12, mlp 3072, but", "width 192, heads 3, mlp 700"),
        ("wsp", {"model.width": "96"}, "config.model.width: width 96, but", "width 192"),
        ("linear", {"model.heads": "6"}, "config.model.heads: heads 6, but", "heads 3"),
        ("classify", {"model.size": "Ti/4"}, "config.model.size: patch 4, but", "patch 16"),
        ("mae", {}, "patch 2, width 96, depth 4, heads 4", "patch 16, width 192, depth 12, heads 3"),
        ("mae", {"model.norm_eps": "1e-6"}, "norm_eps 1e-06", "norm_eps 1e-05"),
    ],
)
def test_another_model_is_refused_with_the_overrides_that_fit(source, tmp_path, capsys, name, stated, said, fit):
    """Other heads change no shape: the weights would have been taken, and meant nothing."""
    argv = ["train", f"--config={recipe(name)}", f"--workdir={tmp_path}/run", f"--config.init_from.run={source}"]
    assert main([*argv, *arguments(stated)]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and not (tmp_path / "run").exists()
    assert said in line and f"but the weights of {source} (config.init_from.run) are for" in line and fit in line
    given = dict(word.removeprefix("--config.").split("=") for word in line.split("or set ")[1].split())
    found = resolved(name, {"init_from.run": str(source), **stated, **given})
    assert found["model"]["mlp"] == 700 and found["model"]["norm_eps"] == 1e-5


def test_another_input_is_said(source, caplog):
    with caplog.at_level("INFO", "mae_pp_jax"):
        resolved("linear", {"init_from.run": str(source), "data.mean": "0.4,0.5,0.6"})
    assert f"config.data.mean: (0.4, 0.5, 0.6); the weights of {source} (config.init_from.run) were" in caplog.text


def test_a_stage_of_a_pipeline_takes_after_one_that_is_not_trained_yet(tmp_path):
    entries = [
        dict(name="mae", config=recipe("mae"), overrides={"model.width": 64}),
        dict(name="wsp", config=recipe("wsp"), init_from="mae"),
        dict(name="linear", config=recipe("linear"), init_from="wsp"),
        dict(name="random", config=recipe("linear")),
    ]
    found = pipeline._resolve(dict(stages=entries), tmp_path / "runs", tmp_path, {"mae.model.depth": "2"})
    models = {name: config.model for name, (_, config) in found.items()}
    assert {(m.size, m.width, m.depth) for name, m in models.items() if name != "random"} == {("Ti/2", 64, 2)}
    assert (models["random"].width, models["random"].depth) == (96, 4)
    entries[2]["overrides"] = {"model.width": 96}
    with pytest.raises(
        UserError, match=r"^linear: config\.model\.width: width 96, mlp 384, but the weights of .*runs/wsp "
    ):
        pipeline._resolve(dict(stages=entries), tmp_path / "runs", tmp_path, {})


def test_a_training_takes_its_model_from_the_run_and_goes_on_without_it(mae_run, tmp_path, capsys, caplog):
    source = (tmp_path / "mae").with_name("source")
    source.symlink_to(mae_run)
    argv = ["train", f"--config={recipe('linear')}", f"--workdir={tmp_path}/run", *arguments(SHORT)]
    argv += [f"--config.init_from.run={source}"]
    assert main([*argv, "--keys"]) == 0
    assert "--config.model.width=16\n" in capsys.readouterr().out
    with caplog.at_level("INFO", "mae_pp_jax"):
        result = train(recipe("linear"), tmp_path / "run", {**SHORT, "init_from.run": str(source)})
    assert f"config: as in {source}: model.depth: 0 → 2; " in caplog.text and "model.width: 0 → 16" in caplog.text
    assert result["parameters"] == sum(leaf.size for leaf in params_of(tmp_path / "run").values())
    source.unlink()
    again = train(recipe("linear"), tmp_path / "run", {**SHORT, "init_from.run": str(source)})
    assert json.dumps(again) == json.dumps(result)
