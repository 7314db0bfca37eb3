"""Ours against the reference packages themselves, at other sizes and seeds than the stored cases."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [torch]: run make parity")
pytest.importorskip("transformers", reason="needs the extra [torch]: run make parity")

from safetensors.torch import load_file

from mae_pp_jax.commands import convert
from tests.parity import checks, references


@pytest.fixture(autouse=True, scope="module")
def importable():
    references.define_torchvision_operators()


def compare(tmp_path, make, **sizes):
    make(tmp_path / "case", **sizes)
    found = checks.check(tmp_path / "case", tmp_path / "run")
    assert found and max(found.values()) <= checks.LIMIT, found


@pytest.mark.parametrize(
    "sizes",
    [
        dict(seed=20, image=224, patch=16, width=64, heads=4, classes=10),
        dict(seed=21, image=224, patch=14, width=48, heads=4, classes=0, depth=3),
        dict(seed=22, image=224, patch=16, width=64, heads=2, pool="avg", classes=10, mlp_ratio=3.0),
        dict(seed=23, image=224, patch=16, width=32, heads=2, resized=512),
        dict(seed=24, image=224, patch=14, width=32, heads=2, pool="avg", resized=518),
        dict(seed=25, image=224, patch=16, width=32, heads=2, resized=160, suffix="pth"),
    ],
    ids=lambda sizes: "-".join(str(value) for value in sizes.values()),
)
def test_timm(tmp_path, sizes):
    compare(tmp_path, references.timm, **sizes)


@pytest.mark.parametrize(
    "sizes",
    [
        dict(seed=30, image=224, patch=16, hidden_size=64, intermediate_size=256, normalize=False),
        dict(seed=31, image=56, patch=14, num_hidden_layers=3, eps=1e-6),
        dict(seed=32, image=32, patch=8, saved=False, decoder_num_hidden_layers=2),
    ],
    ids=lambda sizes: str(sizes["seed"]),
)
def test_huggingface_mae(tmp_path, sizes):
    compare(tmp_path, references.huggingface_mae, **sizes)


def test_huggingface_vit(tmp_path):
    compare(tmp_path, references.huggingface_vit, seed=40, image=64, patch=16, labels=11)


@pytest.mark.parametrize("sizes", [dict(resized=224), dict(swag=True, resized=384)], ids=["torchvision", "swag"])
def test_torchvision_and_swag(tmp_path, sizes):
    compare(tmp_path, references.torchvision, seed=50, **sizes)


@pytest.mark.parametrize("old, new", [(14, (32, 7)), (16, (37, 24))])
def test_positions(tmp_path, old, new):
    references.positions(tmp_path, 60, old=old, new=new, width=8)
    found = checks.check_positions(tmp_path)
    assert max(found.values()) <= 1e-5, found


def exported(tmp_path, format, target):
    convert.export_run(str(tmp_path / "run"), str(tmp_path / target), format)
    return tmp_path / target


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_timm_loads_what_we_write(tmp_path, suffix, pool):
    compare(tmp_path, references.timm, seed=70, pool=pool, width=32, heads=2, suffix="pth")
    path = exported(tmp_path, "timm", f"out.{suffix}")
    state = load_file(path) if suffix == "safetensors" else torch.load(path, weights_only=True)
    model = references.timm_model(71, pool=pool, width=32, heads=2)
    model.load_state_dict(state, strict=True)
    original = torch.load(tmp_path / "case" / "weights.pth", weights_only=True)
    assert all(torch.equal(state[key], original[key]) for key in original)


@pytest.mark.parametrize("legacy", [False, True])
def test_mae_and_maws_files_are_those_of_torch(tmp_path, legacy):
    weights = references.timm_model(72, width=32, heads=2, classes=0).state_dict()
    torch.save({"model": weights, "epoch": 3}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    convert.import_file(str(tmp_path / "a.pth"), str(tmp_path / "run"), heads=2)
    for format, target in (("mae", "b.pth"), ("maws", "c.pt")):
        state = torch.load(exported(tmp_path, format, target), weights_only=True, mmap=True)
        state = state["model"] if format == "mae" else state
        assert state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in weights)


def test_transformers_loads_what_we_write(tmp_path):
    from transformers import ViTForImageClassification, ViTMAEForPreTraining, ViTModel

    references.huggingface_mae(tmp_path / "mae", 80)
    references.huggingface_vit(tmp_path / "vit", 81)
    for name, classes in (("mae", (ViTMAEForPreTraining,)), ("vit", (ViTForImageClassification, ViTModel))):
        convert.import_file(str(tmp_path / name), str(tmp_path / f"{name}_run"))
        convert.export_run(str(tmp_path / f"{name}_run"), str(tmp_path / f"{name}_out"), "huggingface")
        for model_class in classes:
            more = {"add_pooling_layer": False} if model_class is ViTModel else {}
            ours, info = model_class.from_pretrained(tmp_path / f"{name}_out", output_loading_info=True, **more)
            theirs = model_class.from_pretrained(tmp_path / name, **more)
            assert not info["missing_keys"] and not info["mismatched_keys"]
            assert not info["unexpected_keys"] or model_class is ViTModel
            state = theirs.state_dict()
            assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())


def test_strided_and_shared_tensors_are_read_as_torch_reads_them(tmp_path):
    weights = references.timm_model(90, width=32, heads=2, classes=0).state_dict()
    big = torch.randn(3, 96, 64)
    weights["blocks.0.attn.qkv.weight"] = big[1, :, ::2]
    weights["norm.bias"] = big[0, 0, :32]
    weights["blocks.1.mlp.fc1.weight"] = torch.randn(32, 128).T
    torch.save(weights, tmp_path / "views.pth")
    convert.import_file(str(tmp_path / "views.pth"), str(tmp_path / "run"), heads=2)
    state = torch.load(exported(tmp_path, "timm", "out.pth"), weights_only=True)
    assert all(np.array_equal(state[key], weights[key]) for key in weights)
