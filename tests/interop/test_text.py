"""Text encoders in and out: parity with stored answers, every tensor accounted for, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mae_pp_jax.commands import convert
from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from tests.conftest import ROOT
from tests.parity import checks, text_checks

STORED = ROOT / "tests/parity/stored_text"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the runs that the parity test made of the stored cases."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("case", ["xlmr", "bert", "maws_clip"])
def test_answers_and_gradients_are_those_of_the_reference(case, runs):
    found = text_checks.check(STORED / case, runs / case)
    gradients = {name for name in found if name.startswith("gradient")}
    assert len(gradients) == {"xlmr": 37, "bert": 37, "maws_clip": 28}[case]
    assert max(found[name] for name in found.keys() - gradients) <= text_checks.OUTPUT_LIMIT, found
    assert max(found[name] for name in gradients) <= text_checks.GRADIENT_LIMIT, found


@pytest.mark.parametrize("case", ["xlmr", "bert"])
def test_huggingface_there_and_back(case, runs, tmp_path, capsys):
    """What comes back differs in one thing alone: the row of token types has gone into the positions."""
    if not (runs / case).exists():
        convert.import_file(str(STORED / case), str(runs / case))
    convert.export_run(str(runs / case), str(tmp_path / "out"), "huggingface")
    weights, found = load_file(STORED / case / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    types, positions = "embeddings.token_type_embeddings.weight", "embeddings.position_embeddings.weight"
    weights = {key: value for key, value in weights.items() if not key.startswith("pooler")}
    weights[positions], weights[types] = weights[positions] + weights[types][0], np.zeros((1, 16), np.float32)
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    convert.import_file(str(tmp_path / "out"), str(tmp_path / "again"))
    one, two = (storage.read_json(folder / "config.json") for folder in (runs / case, tmp_path / "again"))
    assert one["text"] == two["text"] and one["stage"] == "text_encoder"
    with pytest.raises(UserError, match="timm has no place for the text encoder"):
        convert.export_run(str(runs / case), str(tmp_path / "out.safetensors"), "timm")


@pytest.mark.parametrize("old_names", [False, True])
def test_the_encoder_of_a_model_for_a_task(old_names, tmp_path, capsys):
    """A prefix, the layers of the task, a buffer, and in BERT's first releases gamma and beta."""
    weights = {f"bert.{key}": value for key, value in load_file(STORED / "bert/model.safetensors").items()}
    if old_names:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, name in old.items():
            weights = {key.replace(new, name): value for key, value in weights.items()}
    weights["bert.embeddings.position_ids"] = np.arange(12)[None]
    weights["cls.predictions.bias"] = np.zeros(40, np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    convert.import_file(str(tmp_path / "model.safetensors"), str(tmp_path / "run"), heads=2)
    report = capsys.readouterr().out
    assert all(f"  {key} " in report for key in weights)
    assert "bert.embeddings.token_type_embeddings.weight 2×16 left: its first row is added to every position" in report
    assert "cls.predictions.bias 40 left: of the task" in report
    config = storage.read_json(tmp_path / "run/config.json")["text"]
    assert (config["family"], config["pad"], config["norm_eps"], config["heads"]) == ("bert", 0, 1e-12, 2)


def test_both_towers_of_maws_clip_come_from_one_file(tmp_path, capsys):
    """Every tensor goes into one run and is left by the other; the image tower's answers are timm's."""
    file, arrays = str(STORED / "maws_clip/weights.pt"), dict(np.load(STORED / "maws_clip/arrays.npz"))
    moved = {}
    for tower, stage in (("image", "encoder"), ("text", "text_encoder")):
        result = convert.import_file(file, str(tmp_path / tower), heads=2, tower=tower)
        report = capsys.readouterr().out.splitlines()
        moved[tower] = {line.split()[0] for line in report if "→" in line}
        left = {line.split()[0]: line for line in report if " left: of the " in line}
        assert result["stage"] == stage and not moved[tower] & left.keys()
        assert all(f"--tower={'text' if tower == 'image' else 'image'} reads" in line for line in left.values())
    assert left.keys() == moved["image"] and {"logit_scale", "vision_projection"} < left.keys()
    run, params = checks.load(tmp_path / "image")
    cls = jax.jit(lambda p, images: run.model.apply(p, images, method="features"))(params["encoder"], arrays["images"])
    assert checks.difference(cls @ params["projection"]["kernel"], arrays["image_projected"]) <= 1e-5
    config = storage.read_json(tmp_path / "text/config.json")
    assert config["projection"] == 6 and config["text"]["family"] == "roberta" and config["text"]["norm_eps"] == 1e-5
    save_file({"cls_token": np.zeros((1, 1, 4), np.float32)}, tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match="of no known format with a tower for text"):
        convert.import_file(str(tmp_path / "vit.safetensors"), str(tmp_path / "x"), tower="text")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "mpnet"}, "says model_type='mpnet'; known: bert, roberta"),
        ({"model_type": None}, "is absent or names no model_type"),
        ({"hidden_act": "relu"}, "hidden_act='relu'; only 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'; only 'absolute'"),
        ({"num_attention_heads": 0}, "--heads: .* width 16 has; give --heads=N"),
        ({"pooling_mode_max_tokens": True}, "1_Pooling/config.json says pooling_mode_max_tokens"),
    ],
)
def test_another_architecture_is_refused(settings, message, tmp_path):
    shutil.copytree(STORED / "bert", tmp_path / "bert")
    known = json.loads((STORED / "bert/config.json").read_text())
    known = {key: value for key, value in {**known, **settings}.items() if value is not None}
    (tmp_path / "bert/config.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match=message):
        convert.import_file(str(tmp_path / "bert"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_pooling_is_that_of_sentence_transformers(tmp_path):
    shutil.copytree(STORED / "bert", tmp_path / "bert")
    (tmp_path / "bert/1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (tmp_path / "bert/1_Pooling/config.json").write_text(json.dumps(modes))
    convert.import_file(str(tmp_path / "bert"), str(tmp_path / "run"))
    assert storage.read_json(tmp_path / "run/config.json")["text"]["pool"] == "mean"


def test_token_types_of_another_width_are_refused(tmp_path):
    shutil.copytree(STORED / "bert", tmp_path / "bert")
    weights = load_file(tmp_path / "bert/model.safetensors")
    weights["embeddings.token_type_embeddings.weight"] = np.zeros((2, 15), np.float32)
    save_file(weights, tmp_path / "bert/model.safetensors")
    with pytest.raises(UserError, match="token_type_embeddings.weight 2×15 does not fit text/pos_embed 12×16"):
        convert.import_file(str(tmp_path / "bert"), str(tmp_path / "run"))
