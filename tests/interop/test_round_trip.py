"""Theirs → ours → theirs gives the same bits, and what a file becomes serves every stage."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mae_pp_jax.commands import convert
from mae_pp_jax.core import storage
from mae_pp_jax.interop import files


def there_and_back(tmp_path, source, format, target):
    convert.import_file(str(source), str(tmp_path / "run"), heads=2, decoder_heads=2)
    convert.export_run(str(tmp_path / "run"), str(tmp_path / target), format)
    back = files.open_weights(tmp_path / target)
    return {key: tensor.read() for key, tensor in back.tensors.items()}, back


def same(found, weights):
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key].view(np.uint8), value.view(np.uint8), err_msg=key)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_timm_classifier(tmp_path, random_weights, dtype):
    weights = random_weights("timm", "cls_token", "norm", "head", dtype=dtype)
    save_file(weights, tmp_path / "model.safetensors")
    found, _ = there_and_back(tmp_path, tmp_path / "model.safetensors", "timm", "out.safetensors")
    same(found, weights)
    assert storage.read_json(tmp_path / "run" / "config.json")["stage"] == "classify"
    lineage = storage.read_json(tmp_path / "run" / "result.json")["lineage"][0]
    assert lineage["format"] == "timm" and lineage["dtype"] == np.dtype(dtype).name and len(lineage["sha256"]) == 64


@pytest.mark.parametrize(
    "groups", [("cls_token", "norm"), ("cls_token", "norm", "decoder"), ("cls_token", "fc_norm", "head")]
)
def test_mae_files(tmp_path, random_weights, save_torch, groups):
    weights = random_weights("mae", *groups)
    save_torch(tmp_path / "mae.pth", weights, "model")
    found, file = there_and_back(tmp_path, tmp_path / "mae.pth", "mae", "out.pth")
    same(found, weights)
    assert file.wrapped
    stage = {"decoder": "mae", "head": "classify"}.get(groups[-1], "encoder")
    assert storage.read_json(tmp_path / "run" / "config.json")["stage"] == stage
    assert storage.read_json(tmp_path / "run" / "result.json")["lineage"][0]["format"] == "mae"


def test_maws_files_are_flat(tmp_path, random_weights, save_torch):
    weights = random_weights("maws", "cls_token", "norm")
    save_torch(tmp_path / "maws.pt", weights)
    found, file = there_and_back(tmp_path, tmp_path / "maws.pt", "maws", "out.pt")
    same(found, weights)
    assert not file.wrapped and not file.item


def test_huggingface_folder(tmp_path, random_weights):
    weights = random_weights("huggingface", "norm", "decoder")
    save_file(weights, tmp_path / "model.safetensors")
    found, back = there_and_back(tmp_path, tmp_path / "model.safetensors", "huggingface", "out")
    same(found, weights)
    assert back.settings["num_attention_heads"] == 2 and back.settings["layer_norm_eps"] == 1e-6
    # The settings written say what the command line had to say before.
    convert.import_file(str(tmp_path / "out"), str(tmp_path / "again"))
    one, two = (storage.read_json(tmp_path / name / "config.json") for name in ("run", "again"))
    assert one == two


@pytest.mark.parametrize(
    ("format", "norm", "expected"),
    [
        ("maws", "norm", ("squeeze", 1.0, "bicubic")),
        ("mae", "fc_norm", ("center", 0.875, "bicubic")),
        ("timm", "norm", ("center", 1.0, "area")),
    ],
)
def test_finetuned_models_are_evaluated_on_the_crop_of_their_publisher(
    tmp_path, random_weights, save_torch, format, norm, expected
):
    save_torch(tmp_path / "ft.pth", random_weights(format, "cls_token", norm, "head"), *["model"] * (format == "mae"))
    convert.import_file(str(tmp_path / "ft.pth"), str(tmp_path / "run"), format=format, heads=2)
    test = storage.read_json(tmp_path / "run" / "config.json")["evals"]["test"]
    assert (test["crop"], test["share"], test["resize"]) == expected


def test_a_published_vision_tower_keeps_its_projection(tmp_path, random_weights, save_torch, capsys):
    weights = random_weights("maws_clip", "cls_token", "norm", "projection", "text")
    weights = {k: v[:, :0] if 0 in v.shape else v for k, v in weights.items()}
    weights |= {
        "vision_encoder." + k.removeprefix("vision_encoder."): v for k, v in weights.items() if "vision_enc" in k
    }
    weights["text_encoder.encoder.transformer.token_embedding.weight"] = np.ones((7, 10), np.float32)
    save_torch(tmp_path / "clip.pt", weights)
    convert.import_file(str(tmp_path / "clip.pt"), str(tmp_path / "run"), heads=2)
    report = capsys.readouterr().out
    assert "vision_projection 16×12 → projection/kernel 16×12" in report
    assert (
        "text_encoder.encoder.transformer.token_embedding.weight 7×10 left: of the text tower, which --tower=text"
        in report
    )
    for key in weights:
        assert f"  {key} " in report


def test_encoder_only_leaves_the_rest_behind(tmp_path, random_weights, save_torch, capsys):
    save_torch(tmp_path / "mae.pth", random_weights("mae", "cls_token", "norm", "decoder"), "model")
    convert.import_file(str(tmp_path / "mae.pth"), str(tmp_path / "run"), heads=2, encoder_only=True)
    assert storage.read_json(tmp_path / "run" / "config.json")["stage"] == "encoder"
    assert "mask_token 1×1×8 left: not part of the encoder" in capsys.readouterr().out


def test_positions_are_resized_on_the_way_in(tmp_path, random_weights, save_torch):
    from mae_pp_jax.models import positions

    weights = random_weights("timm", "cls_token", "norm")
    save_torch(tmp_path / "vit.pth", weights)
    convert.import_file(str(tmp_path / "vit.pth"), str(tmp_path / "run"), heads=2, image_size=24)
    convert.export_run(str(tmp_path / "run"), str(tmp_path / "out.pth"), "timm")
    found = files.open_weights(tmp_path / "out.pth").tensors["pos_embed"].read()
    wanted = positions.resize(weights["pos_embed"][0], (6, 6), True, method="timm")
    np.testing.assert_array_equal(found[0], wanted)
