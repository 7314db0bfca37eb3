"""Weights among all that training files hold: the right ones are read and the rest is called what it is."""

import argparse
import json
import pathlib
import random

import numpy as np
import pytest
from safetensors.numpy import save_file

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import convert
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop import files

PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "encoder.", "vit._fsdp_wrapped_module.")


@pytest.fixture
def weights(random_weights):
    return random_weights("timm", "cls_token", "norm", "head")


@pytest.fixture
def average(random_weights):
    return random_weights("timm", "cls_token", "norm", "head", seed=1)


def prefixed(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def read(path, item="auto"):
    """(key → values, what is left) of a file."""
    file = files.open_weights(pathlib.Path(path), item)
    return {key: tensor.read() for key, tensor in file.tensors.items()}, file.left


def same(found, weights):
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.mark.parametrize("seed", range(20))
def test_any_prefixes_in_any_order_and_wrappers_around_them(tmp_path, weights, save_tree, seed):
    draw = random.Random(seed)
    prefix = "".join(draw.sample(PREFIXES, draw.randint(1, 4)))
    tree = prefixed(prefix, weights)
    for wrapper in draw.sample(("model", "state_dict", "module", "net", "ema"), draw.randint(0, 3)):
        tree = {"epoch": 3, wrapper: tree, "optimizer": {"state": {0: {"exp_avg": np.ones(3, np.float32)}}}}
    found, left = read(save_tree(tmp_path / "a.pth", tree))
    same(found, weights)
    assert all("weights" not in what for what in left.values())


def test_wrappers_within_keys(tmp_path, weights, save_tree):
    """torch.compile of each block; FSDP and activation checkpointing of it."""
    inner = {
        key.replace("blocks.1.", "blocks.1._orig_mod._checkpoint_wrapped_module."): v for key, v in weights.items()
    }
    same(read(save_tree(tmp_path / "a.pth", inner))[0], weights)


def test_what_stands_beside_the_weights_is_called_what_it_is(tmp_path, weights, save_tree):
    other = {
        "rng_state": np.zeros(5056, np.uint8),
        "rng": {"python": random.getstate(), "cuda": [np.zeros(16, np.uint8)]},
        "loss": np.array(0.25, np.float32),
        "best_acc": np.float64(0.5),
        "args": argparse.Namespace(lr=1e-3, out=pathlib.PurePosixPath("/out")),
        "optimizer": {"state": {0: {"exp_avg": np.ones(3, np.float32)}}, "param_groups": [{"lr": 1.0}]},
        "lr_scheduler": {},
        "queue": np.ones((2, 4), np.float32),
        "note": "mine",
    }
    found, left = read(save_tree(tmp_path / "a.pth", {**other, "state_dict": weights}))
    same(found, weights)
    assert left == {
        "rng_state": "1 tensor, 5,056 bytes, state of random numbers",
        "rng": "1 tensor, 16 bytes, state of random numbers",
        "loss": "1 tensor, 4 bytes, training progress",
        "best_acc": "training progress",
        "args": "settings",
        "optimizer": "1 tensor, 12 bytes, optimizer state",
        "lr_scheduler": "learning-rate schedule",
        "queue": "1 tensor, 32 bytes, outside of the image model",
        "note": "no tensors",
    }


def test_counters_among_the_weights_are_left(tmp_path, weights, save_tree):
    tree = {"n_averaged": np.array(7), **prefixed("module.", weights), "rng_state": np.zeros(4, np.uint8)}
    file = files.open_weights(save_tree(tmp_path / "swa.pth", tree))
    assert file.averaged and file.tensors.keys() == weights.keys()
    assert file.left.keys() == {"n_averaged", "rng_state"}


@pytest.mark.parametrize(
    "raw, averaged",
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model", "ema.module"),
        ("state_dict.model", "state_dict.ema_model"),
        ("net", "averagedModel"),
    ],
)
def test_the_average_is_read_and_the_choice_told(tmp_path, weights, average, save_tree, capsys, raw, averaged):
    tree: dict = {"epoch": 3}
    for name, values in ((raw, weights), (averaged, average)):
        outer, _, inner = name.partition(".")
        tree.setdefault(outer, {}).update(
            {inner: values} if inner == "module" else prefixed(inner and f"{inner}.", values)
        )
    path = save_tree(tmp_path / "a.pth", tree)
    for item, wanted in (("auto", average), ("ema", average), ("model", weights), (raw, weights), (averaged, average)):
        same(read(path, item)[0], wanted)
    result = convert.import_file(str(path), str(tmp_path / "run"), heads=2)
    said = capsys.readouterr().out
    assert f"tensors of {averaged}, a running average" in said and result["lineage"][0]["item"] == averaged
    assert f"  {raw} left: 32 tensors, " in said and f"weights as trained (--item={raw})" in said


def test_an_average_alone_or_absent(tmp_path, weights, save_tree):
    alone = save_tree(tmp_path / "ema.pth", {"model_ema": weights})
    same(read(alone)[0], weights)
    for item, path in (("model", alone), ("ema", save_tree(tmp_path / "raw.pth", {"model": weights}))):
        with pytest.raises(UserError, match=rf"^--item: .* holds no weights '{item}'; it holds model"):
            read(path, item)


def test_several_models_are_not_guessed_among(tmp_path, weights, average, save_tree, capsys):
    tree = {"student": prefixed("module.backbone.", weights), "teacher": prefixed("backbone.", average)}
    path = save_tree(tmp_path / "dino.pth", tree)
    assert main(["convert", f"--from={path}", f"--to={tmp_path / 'run'}", "--heads=2"]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and "student.backbone (32 tensors), teacher.backbone (32 tensors)" in said
    same(read(path, "teacher.backbone")[0], average)


def test_two_keys_that_would_be_one_are_refused(tmp_path, weights, save_tree):
    with pytest.raises(UserError, match="both cls_token and module.cls_token would be cls_token"):
        read(save_tree(tmp_path / "a.pth", {**weights, "module.cls_token": weights["cls_token"]}))


def test_moments_under_the_names_of_weights_are_optimizer_state(tmp_path, random_weights):
    weights = random_weights("big_vision", "head")
    tree = {f"{at}/{key}": value for at in ("params", "opt/0/mu", "opt/0/nu") for key, value in weights.items()}
    np.savez(tmp_path / "a.npz", **tree)
    found, left = read(tmp_path / "a.npz")
    same(found, weights)
    assert len(left) == 2 * len(weights) and all(what.endswith("optimizer state") for what in left.values())


def test_shared_and_nested_dicts_are_read_once(tmp_path, weights, save_tree):
    """A small file may hold one list billions of times."""
    many: list = []
    for _ in range(60):
        many = [many] * 10
    found, left = read(save_tree(tmp_path / "a.pth", {"model": weights, "best": weights, "many": many}))
    same(found, weights)
    assert left == {"best": "the same as model", "many": "no tensors"} or left["best"] == "the same as model"


@pytest.fixture
def sharded(tmp_path, weights):
    """`sharded(weight_map changes)` writes a folder of two shards with an index."""

    def write(**changes):
        folder = tmp_path / "hub"
        folder.mkdir()
        keys, names = sorted(weights), [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        parts = {names[i]: keys[i::2] for i in (0, 1)}
        for name, part in parts.items():
            save_file({key: weights[key] for key in part}, folder / name)
        where = {key: name for name, part in parts.items() for key in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**where, **changes}}))
        return folder

    return write


def test_shards_are_read_by_folder_and_by_index(sharded, weights):
    folder = sharded()
    for path in (folder, folder / "model.safetensors.index.json"):
        same(read(path)[0], weights)
    with pytest.raises(UserError, match=f"is one of 2 shards of a model; give its folder, {folder}"):
        read(folder / "model-00001-of-00002.safetensors")


def test_an_index_of_tensors_that_no_shard_holds_is_refused_by_name(sharded):
    folder = sharded(**{"blocks.2.norm1.weight": "model-00002-of-00002.safetensors"})
    with pytest.raises(UserError, match="index.json: lists blocks.2.norm1.weight, which no shard holds"):
        read(folder)


def test_shards_without_index_are_refused(sharded):
    folder = sharded()
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="lacks the index of its shards"):
        read(folder)


def test_of_the_files_of_a_folder_safetensors_are_read_and_the_others_named(tmp_path, weights, average, save_torch):
    save_file(weights, tmp_path / "model.safetensors")
    save_torch(tmp_path / "pytorch_model.bin", average)
    save_torch(tmp_path / "optimizer.pt", average)
    (tmp_path / "flax_model.msgpack").write_bytes(b"x")
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    found, left = read(tmp_path)
    same(found, weights)
    assert left == {
        "optimizer.pt": "of a training",
        "flax_model.msgpack": "weights of a kind that is not read",
        "pytorch_model.bin": "not read: another file of weights",
        "pytorch_model.bin.index.json": "not read: another file of weights",
    }


def test_a_folder_of_several_models_is_not_guessed_among(tmp_path, weights, save_torch):
    save_torch(tmp_path / "best.pth", weights)
    same(read(tmp_path)[0], weights)
    save_torch(tmp_path / "last.pth", weights)
    with pytest.raises(UserError, match=r"holds several weight files \(best.pth, last.pth\); name the one to read"):
        read(tmp_path)
