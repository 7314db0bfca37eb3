"""Stage `low_shot` with adapters and a grid of learning rates, and what is made of its runs."""

import json
import pathlib

import jax
import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands.evaluate import evaluate
from mae_pp_jax.commands.train import train
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import loop, partition
from mae_pp_jax.core import program as program_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten
from mae_pp_jax.stages import registry
from tests.conftest import RECIPES, ROOT
from tests.stages.conftest import params_of, recipe, stage_of, stage_of_run

# Of SGD an update is linear in the gradient; AdamW's makes the rounding of small ones large.
SMALL = {
    "data.flip": "true",
    "data.crop": "shift",
    "optim.name": "sgd",
    "optim.lr": "1",
    "optim.lr_batch": "0",
    "seed": "3",
}
LORA = {"adapter.kind": "lora", "adapter.rank": "2", "adapter.targets": "q,v,proj,fc2"}
TRAINED = {
    **RECIPES["low_shot"],
    **LORA,
    **{"splits": "2", "global_batch": "16", "lr_grid": "1.0,0.02", "select_images": "60", "optim.lr": "0.05"},
}


def trained(splits, grid, kind, devices=1, steps=3, **overrides):
    """Adapters and heads by path, [splits, learning rates, …], after a few updates of eight images per draw."""
    keys = {**SMALL, "adapter.kind": kind, "lr_grid": grid, "splits": str(splits), "global_batch": str(8 * splits)}
    stage = stage_of("low_shot", **{**keys, **overrides})
    mesh = partition.make_mesh(config_lib.resolve(partition.MeshConfig, {}), jax.devices()[:devices])
    prog = program_lib.make(stage, mesh)
    state, *_ = loop.initial_state(prog)
    before, update, batches = jax.device_get(state.params["encoder"]), prog.compile(), stage.train_batches(0)
    for _ in range(steps):
        state = update(state, partition.to_global(next(batches), mesh))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params["encoder"]), before)
    models = {p: np.asarray(v) for p, v in flatten(state.params).items() if not p.startswith("encoder/")}
    return {path: value.reshape(splits, stage.factors, *value.shape[1:]) for path, value in models.items()}


def same(one, two):
    for path, value in one.items():
        np.testing.assert_allclose(two[path], value, rtol=2e-5, atol=2e-6, err_msg=path)


@pytest.mark.parametrize(
    "kind", ["adaptformer", *(pytest.param(k, marks=pytest.mark.slow) for k in ("vpt_deep", "lora"))]
)
def test_more_draws_and_learning_rates_change_no_other_model(kind):
    """Nor do devices. AdaptFormer has all that could couple models: dropout, and a normalisation over a model's batch."""
    more = {"adapter.scale": "10"} if kind == "adaptformer" else {}  # all its leaves move far in three steps
    alone, many = trained(1, "1.0", kind, **more), trained(2, "0.3,1.0", kind, devices=8, **more)
    same(alone, {path: value[:1, 1:] for path, value in many.items()})
    for path, value in many.items():
        for a, b in ((value[0], value[1]), (value[:, 0], value[:, 1])):
            assert np.abs(a - b).max() > 1e-4, path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vpt_shallow", "lora"])
def test_microbatches_give_the_same_models(kind):
    same(trained(2, "0.3,1.0", kind), trained(2, "0.3,1.0", kind, microbatches="4"))


@pytest.fixture(scope="module")
def lora_run(runs, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """(a finished run with LoRA at two learning rates on two draws, the run that it started from)."""
    source, folder = runs("wsp")[0], tmp_path_factory.mktemp("low_shot") / "lora"
    train(recipe("low_shot"), folder, {**TRAINED, "init_from.run": str(source)})
    return folder, source


def test_a_checkpoint_holds_adapters_and_heads_alone(lora_run):
    folder, source = lora_run
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    meta = json.loads((newest / "meta" / "metadata").read_text())
    assert meta["frozen"][0]["run"] == str(source)
    assert sum(file.stat().st_size for file in newest.rglob("*") if file.is_file()) < 400e3
    stored = {p.name for p in (newest / "params").rglob("*") if "encoder" in p.name}
    assert not stored
    ours, theirs = params_of(folder), params_of(source)
    for path in (p for p in theirs if p.startswith("encoder/")):
        np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
    assert np.any(ours["adapters/lora/fc2/b"]) and ours["adapters/lora/fc2/b"].shape == (4, 2, 2, 16)
    np.testing.assert_array_equal(*(ours["heads/kernel"].shape, (4, 16, 10)))


def test_a_learning_rate_is_picked_per_draw_and_reported(lora_run):
    folder, _ = lora_run
    result = json.loads((folder / "result.json").read_text())
    metrics = result["metrics"]
    assert {metrics[f"test/lr_factor_{split}"] for split in range(2)} <= {1.0, 0.02}
    assert {"test/accuracy", "test/accuracy_std", "test/selection_accuracy"} <= metrics.keys()
    assert metrics["test/splits"] == 2
    again = evaluate(str(folder))
    for name in (n for n in metrics if n.startswith("test/")):
        assert again[name] == pytest.approx(metrics[name], rel=1e-5), name


def test_images_to_pick_on_are_neither_drawn_nor_of_the_test_set(lora_run):
    stage = stage_of_run(lora_run[0])
    for split, (drawn, selected) in enumerate(zip(stage.drawn, stage.selection, strict=True)):
        names = (lora_run[0] / "splits" / f"2shot_{split}.txt").read_text().splitlines()
        assert names == [stage.train_source.describe(int(record)) for record in drawn]
        picked = {selected.describe(i) for i in range(len(selected))}
        assert len(picked) == 60 and not picked & set(names) and all("split train" in name for name in picked)
    batch = next(stage.select_batches())
    assert batch["group"].tolist() == [0, 1] * 8 and batch["mask"].all()


def test_a_run_reads_the_draws_of_another(lora_run):
    stage = stage_of_run(lora_run[0])
    other = stage_of("low_shot", splits="2", splits_from=str(lora_run[0] / "splits"), seed="99")
    for one, two in zip(stage.subsets, other.subsets, strict=True):
        assert one.fingerprint == two.fingerprint


def test_lora_merges_into_plain_weights(lora_run, tmp_path, capsys):
    folder, _ = lora_run
    assert main(["convert", f"--from={folder}", "--merge=1", f"--to={tmp_path / 'merged'}"]) == 0
    stage, merged = stage_of_run(tmp_path / "merged"), stage_of_run(tmp_path / "merged").model
    picked = json.loads((folder / "result.json").read_text())["metrics"]["test/lr_factor_1"]
    own = stage_of_run(folder)
    params = own._take(unflatten(params_of(folder)), [0, [1.0, 0.02].index(picked)])
    batch = next(own.eval_batches("test"))
    ours = jax.jit(merged.apply)(unflatten(params_of(tmp_path / "merged")), stage.pixels(batch))
    theirs = jax.jit(own.logits)(params, batch)[:, 1]
    assert np.abs(theirs).max() > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={tmp_path / 'merged'}"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 0
    found = json.loads((tmp_path / "merged" / "result.json").read_text())
    assert [record["stage"] for record in found["lineage"]][-2:] == ["wsp", "low_shot"]


def test_what_is_refused_of_a_run_with_adapters(lora_run, runs, tmp_path, capsys):
    folder, source = lora_run
    again = {**TRAINED, "init_from.run": str(source)}
    refused = {
        "holds a run with another config (adapter.rank: 2 → 4)": ["train", {**again, "adapter.rank": "4"}, folder],
        "the weights of": ["train", {**again, "model.width": "24"}, tmp_path / "new"],
        "has splits 0 to 1, not 2": ["convert", f"--from={folder}", "--merge=2", f"--to={tmp_path / 'm'}"],
        "has no adapters; only LoRA": ["convert", f"--from={source}", "--merge", f"--to={tmp_path / 'm'}"],
        "has adapters of several models": ["embed", f"--workdir={folder}", f"--images={__file__}", "--out=f.npz"],
    }
    for said, argv in refused.items():
        if argv[0] == "train":
            keys, where = argv[1:]
            argv = ["train", f"--config={recipe('low_shot')}", f"--workdir={where}"]
            argv += [f"--config.{name}={value}" for name, value in keys.items()]
        assert main(argv) == 2, said
        err = capsys.readouterr().err
        assert said in err.splitlines()[-1], err
    assert not (tmp_path / "new").exists() and not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "keys, said",
    [
        (
            {"adapter.kind": "lora", "adapter.tokens": "3"},
            "adapter.tokens: 3 has no effect: only adapter.kind=vpt_shallow",
        ),
        ({"adapter.rank": "3"}, "adapter.rank: 3 has no effect: only adapter.kind=lora uses it"),
        ({"adapter.kind": "lora", "adapter.targets": "qkv"}, "adapter.targets: 'qkv' is not one of"),
        ({"adapter.kind": "vpt_deep", "adapter.tokens": "0"}, "adapter.tokens: must be at least 1"),
        ({"lr_grid": "1.0,1.0"}, "config.lr_grid: name factors above 0, each once"),
        ({"select_images": "5"}, "select_images: 5 has no effect: only a grid"),
        ({"adapter.kind": "adaptformer", "microbatches": "2"}, "config.microbatches: 2, but the loss"),
        ({"adapter.kind": "lora", "microbatches": "3"}, "config.global_batch: 40 does not divide over 5 models with 3"),
        ({"lr_grid": "1.0,2.0", "shots": "50"}, "config.select_images: 1,000 images are wanted .* and 937 of 1,437"),
        ({"splits_from": "nowhere"}, "config.splits_from: nowhere has no file for draw 1 of 5"),
    ],
)
def test_bad_keys_are_one_line(keys, said):
    with pytest.raises(UserError, match=said):
        mapping = config_lib.load_file(recipe("low_shot"))
        stage = registry.create(registry.resolve(mapping, {**RECIPES["low_shot"], **keys}))
        mesh = partition.make_mesh(config_lib.resolve(partition.MeshConfig, {}), jax.devices()[:1])
        program_lib.make(stage, mesh)
        stage.dataset  # noqa: B018 what `train` looks at before it writes anything


@pytest.mark.parametrize("kind", ["vpt_shallow", "vpt_deep", "adaptformer", "lora"])
def test_recipes_take_every_kind(kind):
    """Also where the data is not at hand: what one image costs needs none."""
    for name in ("digits", "in1k"):
        mapping = config_lib.load_file(f"{ROOT}/configs/low_shot/{name}.py:adapter={kind},shots=1")
        config = registry.resolve(mapping)
        assert config.adapter.kind == kind and config.shots == 1
    plain = registry.create(registry.resolve(config_lib.load_file(f"{ROOT}/configs/low_shot/in1k.py:shots=1")))
    adapted = registry.create(config)
    per_model = adapted.train_flops_per_example() / adapted.factors
    assert 1.9 < per_model / plain.train_flops_per_example() < 2.2
