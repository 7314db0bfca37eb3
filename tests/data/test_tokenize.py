"""Tokenizers: the ids of transformers' own, lengths, and what is refused."""

import concurrent.futures
import json
import shutil

import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import tokenize
from tests.conftest import ROOT

STORED = ROOT / "tests/parity/stored_text/tokenizers"
MODEL = STORED / "xlmr/sentencepiece.bpe.model"
AROUND = {"xlmr": (0, 2, 1), "bert": (2, 3, 0)}  # begin, end, padding


def answers(name):
    found = json.loads((STORED / name / "answers.json").read_text("utf-8"))
    return found["sentences"], np.asarray(found["ids"], np.int32), found["length"]


@pytest.mark.parametrize("name", AROUND)
def test_ids_are_those_of_transformers(name):
    texts, ids, length = answers(name)
    tokenizer = tokenize.load(STORED / name, length)
    assert (tokenizer.begin, tokenizer.end, tokenizer.pad) == AROUND[name]
    found = tokenizer.encode(texts)
    np.testing.assert_array_equal(found.ids, ids)
    assert found.ids.dtype == np.int32 and tokenizer.vocabulary > ids.max()
    np.testing.assert_array_equal(found.mask, ids != tokenizer.pad)
    assert [text for text, empty in zip(texts, found.empty, strict=True) if empty] == ["", "   "]


@pytest.mark.parametrize("name", AROUND)
def test_texts_are_cut_filled_up_and_counted(name):
    texts, _, _ = answers(name)
    longer, shorter = tokenize.load(STORED / name, 400).encode(texts), tokenize.load(STORED / name, 9).encode(texts)
    assert not longer.cut.any()
    np.testing.assert_array_equal(shorter.cut, longer.lengths > 9)
    np.testing.assert_array_equal(shorter.lengths, np.minimum(longer.lengths, 9))
    np.testing.assert_array_equal(shorter.ids[:, :8][shorter.cut], longer.ids[:, :8][shorter.cut])
    assert set(shorter.ids[shorter.cut, 8]) == {AROUND[name][1]}
    assert shorter.cut.any() and not shorter.cut.all()
    nothing = tokenize.load(STORED / name, 9).encode([])
    assert nothing.ids.shape == (0, 9) and nothing.mask.shape == (0, 9)


@pytest.mark.parametrize("name", AROUND)
def test_threads_share_a_tokenizer_and_batches_change_nothing(name):
    texts, _, length = answers(name)
    tokenizer = tokenize.load(STORED / name, length)
    whole = tokenizer.encode(texts * 3).ids
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda text: tokenizer.encode([text]).ids[0], texts * 3))
    np.testing.assert_array_equal(alone, whole)


def test_half_a_character_is_a_replacement_character():
    for name in AROUND:
        tokenizer = tokenize.load(STORED / name)
        np.testing.assert_array_equal(tokenizer.encode(["a \udce9 b"]).ids, tokenizer.encode(["a \ufffd b"]).ids)


def test_the_hash_is_of_what_determines_tokens(tmp_path):
    settings = json.loads((STORED / "bert/tokenizer.json").read_text("utf-8"))
    own = tokenize.load(STORED / "bert").sha256

    def of(**changes):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**settings, **changes}), "utf-8")
        return tokenize.load(tmp_path).sha256

    cut = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    filled = {"strategy": {"Fixed": 5}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    assert of() == of(truncation=cut, padding={**filled, "pad_to_multiple_of": None}) == own
    assert of(normalizer=None) != own
    assert tokenize.load(STORED / "xlmr").sha256 == tokenize.load(MODEL, 7).sha256 != own


def test_a_vocabulary_larger_than_the_table_is_refused():
    tokenizer = tokenize.load(STORED / "xlmr")
    tokenizer.check_table(262, "config.tokenizer")
    with pytest.raises(UserError, match="config.tokenizer: its vocabulary of 262 is larger than the 261 rows"):
        tokenizer.check_table(261, "config.tokenizer")


def test_what_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("two/a.model", "two/b.model", "broken.model", "broken.json"):
        (tmp_path / name).write_bytes(b"{" + b"no" * 9)
    (tmp_path / "vocab.txt").write_text("a\n")
    settings = json.loads((STORED / "bert/tokenizer.json").read_text("utf-8"))
    (tmp_path / "bare.json").write_text(json.dumps({**settings, "post_processor": None}), "utf-8")
    shutil.copy(MODEL, tmp_path / "xlmr.model")
    for name, message in (
        ("absent.json", "does not exist; give a tokenizer.json"),
        ("empty", "holds neither tokenizer.json nor a SentencePiece model"),
        ("two", r"holds several SentencePiece models \(a.model, b.model\); name one"),
        ("vocab.txt", "must end in .json"),
        ("broken.model", "is no readable SentencePiece model"),
        ("broken.json", "is no readable tokenizer.json"),
        ("bare.json", "puts 0 tokens around a text"),
    ):
        with pytest.raises(UserError, match=message) as found:
            tokenize.load(tmp_path / name)
        assert str(found.value).startswith("config.tokenizer: ") and "\n" not in str(found.value)
    with pytest.raises(UserError, match="texts of 2 tokens have no room"):
        tokenize.load(tmp_path / "xlmr.model", 2)
    with pytest.raises(UserError, match="no tokenizer is given"):
        tokenize.load("")
