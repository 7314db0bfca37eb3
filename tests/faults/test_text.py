"""Random text: tags, captions and names come out as they were meant, and never raise."""

import csv
import json
import unicodedata

import cv2
import hypothesis
import numpy as np
import pytest
import regex
import tensorflow_datasets as tfds
from hypothesis import strategies as st

from mae_pp_jax.__main__ import main
from mae_pp_jax.data import text, vocabulary

EMOJI = ("❤️", "☀️", "🐶", "👍🏽", "👨‍👩‍👧", "🇩🇪", "1️⃣", "🏃‍♀️")
SEPARATORS = (",", ", ", " ,", "，", "、", ";", "；", "|", " | ", "\t", "\n", "؛", ",,", " #", ", #", ",＃", "\u200b;")
# Letters with at most two marks each, as words of any script are made.
LETTERS = st.characters(categories=("Lu", "Ll", "Lo", "Nd"), exclude_characters="'").filter(
    lambda c: not regex.match(r"\p{DI}", c) and regex.match(r"\p{XID_Start}|\p{Nd}", c)
)
MARKS = st.text(st.characters(categories=("Mn", "Mc")).filter(lambda c: not regex.match(r"\p{DI}", c)), max_size=2)
WORD = st.lists(st.tuples(LETTERS, MARKS).map("".join), min_size=1, max_size=5).map("".join)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.sampled_from(EMOJI),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
)


def examples(function):
    """The test as it stands, with 60 examples, and as a slow one with 2,000; the same ones in every run."""
    return pytest.mark.parametrize("number", [60, pytest.param(2000, marks=pytest.mark.slow)])(function)


def check(number, property, *strategies):
    """Calls `property` with so many drawn arguments."""
    settings = hypothesis.settings(max_examples=number, derandomize=True, deadline=None, database=None)
    settings(hypothesis.given(*strategies)(property))()


def shown(word):
    """A word as `text.tags` gives it: its emoji without selectors."""
    return word.replace("\ufe0f", "")


@examples
def test_tags_are_those_that_were_joined(number):
    def property(words, separators, brackets):
        words = list(dict.fromkeys(words))
        joined = "".join(w + s for w, s in zip(words, separators[: len(words) - 1] + [""]))
        assert text.tags(brackets[:1] + joined + brackets[1:]) == tuple(map(shown, words))
        assert text.tags(json.dumps(words)) == text.tags(repr(words)) == text.tags(words) == tuple(map(shown, words))

    words = st.lists(WORD | st.sampled_from(EMOJI), min_size=1, max_size=6)
    separators = st.lists(st.sampled_from(SEPARATORS), min_size=6, max_size=6)
    check(number, property, words, separators, st.sampled_from(("", "[]", "{}", "()")))


@examples
def test_hashtags_are_those_of_the_caption(number):
    def property(parts):
        caption = " ".join(f"#{word}" if tagged else word for word, tagged in parts)
        wanted = [w for w, tagged in parts if tagged and regex.search(r"\p{L}", w)]
        assert text.hashtags(caption) == tuple(dict.fromkeys(wanted))

    words = WORD.filter(lambda word: not regex.fullmatch("[0-9a-f]{3,8}", word, regex.I))
    check(number, property, st.lists(st.tuples(words, st.booleans()), max_size=8))


@examples
def test_cleaning_twice_is_cleaning_once_and_nothing_raises(number):
    def property(value):
        name, plain = text.name(value), text.plain(value)
        assert text.name(name) == name == unicodedata.normalize("NFC", name) == " ".join(name.split())
        assert text.plain(plain) == plain
        assert text.hashtags(value) == text.tags(text.hashtags(value))
        try:
            tags = text.tags(value)
        except ValueError as error:
            assert "not an object" in str(error)
            return
        assert text.tags(tags) == tags and all(map(text.glue, tags))
        assert all(text.glue(text.glue(tag)) == text.glue(tag) for tag in tags)

    odd = st.text(st.sampled_from("#&39;ax \"'[],\u200b\ufe0f\u200d🐶❤©１﹟\udce9\u0301*+-/.:ｱﾞ"), max_size=12)
    check(number, property, ANYTHING | odd)


@examples
def test_training_finds_what_was_counted(number):
    def property(images):
        counts = vocabulary.count(images)
        if not counts.tags():
            return
        rules = vocabulary.Rules(min_count=1, stop=())
        made, _ = vocabulary.build(counts, rules, None, {})
        found = np.bincount(np.concatenate([made.ids(tags) for tags in images]), minlength=len(made.classes))
        assert found.tolist() == [c.count for c in made.classes]

    tag = WORD | st.sampled_from([*EMOJI, "dog,cat", "#dog #cat", "dog❤️", "dogs", "\ufe0f", "", "Dog"])
    check(number, property, st.lists(st.lists(tag, max_size=4), min_size=1, max_size=6))


@pytest.mark.parametrize("number", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_labels_are_right_by_name_in_a_built_dataset(number, tmp_path):
    """Read with TFDS alone: the class of every picture is the name in its row, in one form; blank is no class."""
    pytest.importorskip("apache_beam", reason="data build needs Apache Beam: pip install '.[beam]'")
    case = iter(range(number * 3))

    def property(labels):
        root = tmp_path / f"{next(case)}"
        root.mkdir()
        with open(root / "metadata.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "label"])
            for i, label in enumerate(labels):
                pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                cv2.imwrite(str(root / f"{i}.png"), pixels)
                rows.writerow([f"{i}.png", label])
        options = [f"--from={root}", f"--data_dir={root}/tfds", "--name=a", "--splits=train:1"]
        assert main(["data", "build", *options]) == 0
        builder = tfds.builder_from_directory(root / "tfds" / "a" / "1.0.0")
        names = builder.info.features["label"].names if "label" in builder.info.features else []
        found = {r["id"].decode(): int(r.get("label", -1)) for r in builder.as_data_source("train")}
        for i, label in enumerate(labels):
            wanted = " ".join(unicodedata.normalize("NFC", label).split())
            got = found[f"{i}.png"]
            assert (names[got] if got >= 0 else "") == (
                "" if label.strip() in ("nan", "NaN", "null", "NULL") else wanted
            )

    names = st.sampled_from(
        ["dog", " dog", "dog ", " ", "", "①", "②", "10", "9", "01", "1", "two\nlines", "cafe\u0301"]
    )
    check(number, property, st.lists(names | WORD, min_size=1, max_size=12))
