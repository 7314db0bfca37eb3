"""Raw hashtags to classes: spelling, plurals, synonyms, what is dropped, and the same classes again at training."""

import dataclasses
import itertools
import json
import os
import unicodedata

import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import fields, source, vocabulary, wordnet

# A WordNet of six synsets in the format of the real one (wndb(5)): offset → words, and lemma → senses, tagged senses.
SYNSETS = {
    "01639765": ["frog", "toad", "batrachian"],
    "07614500": ["ice_cream", "icecream"],
    "03438257": ["glass", "drinking_glass"],
    "04272054": ["spectacles", "glasses", "eyeglasses"],
    "05563770": ["foot", "human_foot"],
    "07929519": ["coffee", "java"],
}
SENSES = {
    "frog": ("01639765 05563770", 2),
    "toad": ("01639765", 0),
    "batrachian": ("01639765", 0),
    "ice_cream": ("07614500", 1),
    "icecream": ("07614500", 0),
    "glass": ("03438257", 3),
    "drinking_glass": ("03438257", 1),
    "spectacles": ("04272054", 1),
    "glasses": ("04272054", 1),
    "eyeglasses": ("04272054", 0),
    "foot": ("05563770", 4),
    "human_foot": ("05563770", 0),
    "coffee": ("07929519", 2),
    "java": ("05563770 07929519", 2),  # its first sense is not coffee
}


def write_wordnet(folder):
    licence = "  1 This software and database is being provided to you, the LICENSEE.\n"
    data = "".join(
        f"{offset} 05 n {len(words):02x} {' '.join(f'{w} 0' for w in words)} 001 @ 00001740 n 0000 | a gloss\n"
        for offset, words in SYNSETS.items()
    )
    index = "".join(
        f"{lemma} n {len(at.split())} 2 @ ~ {len(at.split())} {tagged} {at}  \n"
        for lemma, (at, tagged) in SENSES.items()
    )
    folder.mkdir()
    (folder / "data.noun").write_text(licence + data)
    (folder / "index.noun").write_text(licence + index)
    (folder / "noun.exc").write_text("feet foot\nmen man\n")


@pytest.fixture(scope="module")
def nouns(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet") / "dict"
    write_wordnet(folder)
    return wordnet.load(folder)


def _build(images, nouns=None, **rules):
    rules = {"min_count": 1, **rules}
    return vocabulary.build(vocabulary.count(images), vocabulary.Rules(**rules), nouns, dataset={})


def _classes(vocab):
    return {c.name: (c.count, {m for m, n in c.members.items() if n}) for c in vocab.classes}


def test_spellings_are_one_tag():
    spellings = ["#Ice Cream", "ice_cream", "ICE-CREAM", "＃ｉｃｅｃｒｅａｍ", "icecream", "ice.cream"]
    vocab, _ = _build([[s] for s in spellings])
    assert _classes(vocab) == {"icecream": (6, {"icecream"})}
    assert {vocab.id(s) for s in spellings} == {0}
    composed, decomposed = "café", unicodedata.normalize("NFD", "café")
    assert composed != decomposed and wordnet.glue(composed) == wordnet.glue(decomposed) == "café"
    assert wordnet.glue("Straße") == wordnet.glue("STRASSE") and wordnet.glue("#東京") == "東京"


def test_emoji_are_classes_and_invisible_characters_none():
    vocab, dropped = _build([["❤️", "dog"], ["❤︎❤️"], ["☀️", "#dog"], ["dog❤️"], ["🐶"], ["\ufe0f", "-"], ["\ufe0f"]])
    assert {c.name: c.count for c in vocab.classes} == {"dog": 3, "❤": 3, "☀": 1, "🐶": 1}
    assert dropped["no letter, digit or emoji"] == {"'\\ufe0f'": 2, "'-'": 1}
    names = [vocab.names[i] for i in vocab.ids(["🐶❤️", "\ufe0f"])]
    assert sorted(names) == sorted(["🐶", "❤"])


def test_a_raw_tag_that_holds_several_counts_for_each():
    images = [["#dog #cat"], ["dog, cat"], ["Tom &amp; dog"], ["cat"]]
    vocab, _ = _build(images)
    assert {c.name: c.count for c in vocab.classes} == {"cat": 3, "dog": 2, "tomdog": 1}
    assert [len(vocab.ids(tags)) for tags in images] == [2, 2, 1, 1]


def test_a_vocabulary_with_invisible_characters_still_maps(tmp_path):
    """As vocabularies were written when variation selectors were taken for marks."""
    members = [
        ("dog\ufe0f", {"dog\ufe0f": 9}),
        ("\ufe0f", {"\ufe0f": 8}),
        ("dog", {"dog": 5}),
        ("cat\ufe0f", {"cat\ufe0f": 2}),
    ]
    classes = [vocabulary.TagClass(name, None, sum(own.values()), own) for name, own in members]
    rules = dict(irregular_plurals={}, no_plurals=[])
    vocabulary.Vocabulary(classes, rules, {}).save(tmp_path / "v.json")
    vocab = vocabulary.Vocabulary.load(str(tmp_path / "v.json"))
    assert vocab.names == tuple(name for name, _ in members)
    assert vocab.ids(["dog"]).tolist() == vocab.ids(["DOG\ufe0f"]).tolist() == [2]
    assert vocab.ids(["cat", "\ufe0f", "❤️"]).tolist() == [3]
    assert vocab.fingerprint == "b7bacb25c57b9382"  # as it was then


def test_synonyms_and_plurals_share_a_class(nouns):
    images = [["frogs"], ["toad"], ["frog", "toads"], ["feet"], ["#HumanFoot"], ["Coffee"], ["java"]]
    vocab, dropped = _build(images, nouns)
    assert _classes(vocab) == {
        "foot": (3, {"feet", "humanfoot", "java"}),
        "frog": (3, {"frog", "frogs", "toad", "toads"}),
        "coffee": (1, {"coffee"}),
    }
    assert [c.synset for c in vocab.classes] == ["n05563770", "n01639765", "n07929519"]
    assert not any(dropped.values())


def test_a_word_of_its_own_is_no_plural(nouns):
    vocab, _ = _build([["glasses"], ["glass"], ["Drinking Glasses"]], nouns)
    assert _classes(vocab) == {"glass": (2, {"glass", "drinkingglasses"}), "spectacles": (1, {"glasses"})}
    without, _ = _build([["glasses"], ["glass"], ["glass"]], nouns, min_count=2)
    assert without.id("glasses") is None and without.id("glass") == 0


def test_an_image_counts_once_for_a_class(nouns):
    vocab, _ = _build([["frog", "frogs", "Toad", "#frog"]], nouns)
    (only,) = vocab.classes
    assert only.count == 1 and only.members["frog"] == 1
    np.testing.assert_array_equal(vocab.ids(["toads", "FROG", "nothing"]), [0])


def test_what_is_dropped_and_why(nouns):
    images = (
        [["frog"]] * 3 + [["coffee"]] * 3 + [["glass"]] * 2 + [["foot"], ["mapsym"], ["Like"], ["likes", "instagood"]]
    )
    vocab, dropped = _build(images, nouns, min_count=2, size=2, stop=("like", "instagood"))
    assert vocab.names == ("coffee", "frog")  # equal counts: by name
    assert dropped == {
        "stop": {"like": 1, "instagood": 1},
        "not a noun": {"mapsym": 1, "likes": 1},
        "rare": {"foot": 1},
        "beyond the size": {"glass": 2},
    }
    assert vocab.ids(["foot", "mapsym", "like", "glasses", "frogs"]).tolist() == [1]


def test_unknown_words_are_kept_on_request(nouns):
    images = [["pokemon"], ["pokemons"], ["frog"]]
    assert _classes(_build(images, nouns)[0]) == {"frog": (1, {"frog"})}
    kept, _ = _build(images, nouns, unknown="keep")
    assert _classes(kept) == {"pokemon": (2, {"pokemon", "pokemons"}), "frog": (1, {"frog"})}
    assert kept.classes[0].synset is None


def test_without_wordnet_tags_stay_apart_but_for_plurals():
    vocab, _ = _build([["frogs"], ["frog"], ["toad"], ["boxes"], ["box"], ["gas"]])
    assert _classes(vocab) == {
        "box": (2, {"box", "boxes"}),
        "frog": (2, {"frog", "frogs"}),
        "gas": (1, {"gas"}),
        "toad": (1, {"toad"}),
    }


@pytest.mark.parametrize("with_wordnet", [True, False])
@pytest.mark.parametrize("unknown", ["drop", "keep"])
def test_training_finds_the_classes_that_were_counted(nouns, tmp_path, with_wordnet, unknown):
    """Every subset of kept classes: what `ids` finds in the file's copy is what `build` counted, image by image."""
    words = [
        *SENSES,
        "frogs",
        "toads",
        "glass",
        "feet",
        "foots",
        "coffees",
        "ice-creams",
        "eyeglass",
        "javas",
        "xs",
        "ss",
    ]
    rng = np.random.default_rng(0)
    images = [list(rng.choice(words, rng.integers(0, 4))) for _ in range(60)]
    for min_count, size, stop in itertools.product((1, 4, 8), (3, 100), ((), ("frog", "glasses"))):
        built, _ = _build(
            images, nouns if with_wordnet else None, min_count=min_count, size=size, stop=stop, unknown=unknown
        )
        built.save(tmp_path / "v.json")
        vocab = vocabulary.Vocabulary.load(str(tmp_path / "v.json"))
        counts = np.bincount(np.concatenate([vocab.ids(tags) for tags in images]), minlength=len(vocab.classes))
        assert counts.tolist() == [c.count for c in vocab.classes]
        assert vocab.fingerprint == built.fingerprint


def test_synonyms_that_nobody_used_are_known_at_training(nouns):
    vocab, _ = _build([["frog"]], nouns)
    assert vocab.id("Toads") == vocab.id("batrachian") == 0 and vocab.id("java") is None


def test_deterministic_in_the_order_of_images_and_tags(nouns, tmp_path):
    images = [["frog", "glass"], ["coffee"], ["java", "feet"], ["toad", "coffee"]]
    one, _ = _build(images, nouns)
    other, _ = _build([tags[::-1] for tags in reversed(images)], nouns)
    one.save(tmp_path / "1.json")
    other.save(tmp_path / "2.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_bad_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="No such file.*data hashtags"):
        vocabulary.Vocabulary.load(str(tmp_path / "none.json"))
    for text in ("{", "[]", '{"format": 99}', json.dumps(dict(format=1, classes=[{"x": 1}], rules={}, dataset={}))):
        (tmp_path / "v.json").write_text(text)
        with pytest.raises(UserError, match="is no vocabulary"):
            vocabulary.Vocabulary.load(str(tmp_path / "v.json"))
    with pytest.raises(UserError, match="no file index.noun"):
        wordnet.find(str(tmp_path))
    with pytest.raises(UserError, match="no hashtag is on 9 images"):
        _build([["frog"]], min_count=9)


@pytest.mark.skipif(
    not os.path.isfile("/usr/share/wordnet/index.noun"), reason="Debian's wordnet-base is not installed"
)
def test_the_real_wordnet():
    nouns = wordnet.load(wordnet.find())
    vocab, _ = _build([["dogs"], ["Canis familiaris"], ["brown bears"], ["ursusarctos"], ["geese"], ["goose"]], nouns)
    assert _classes(vocab) == {
        "brown bear": (2, {"brownbears", "ursusarctos"}),
        "dog": (2, {"dogs", "canisfamiliaris"}),
        "goose": (2, {"geese", "goose"}),
    }
    assert vocab.classes[1].synset == "n02084071"  # as ImageNet calls it


def test_a_source_in_a_vocabulary(digits, digits_config, tmp_path):
    """Hashtags that a dataset stores as ids are mapped by their names."""
    names = fields.names(digits, "hashtags")
    images = [[names[t] for t in ids] for ids in digits.column("hashtags")]
    vocab, _ = _build(images, min_count=20, stop=("even",))
    vocab.save(tmp_path / "v.json")
    config = dataclasses.replace(digits_config, vocabulary=str(tmp_path / "v.json"), cache="none")
    mapped = source.open_source(config, "train")
    assert fields.names(mapped, "hashtags") == vocab.names and "even" not in vocab.names
    assert mapped.fingerprint != digits.fingerprint
    ids = list(mapped.column("hashtags"))
    for i in (0, 7, 1000):
        np.testing.assert_array_equal(mapped[i]["hashtags"], vocab.ids(images[i]))
        np.testing.assert_array_equal(mapped[i]["hashtags"], ids[i])
    tagged = source.open_source(dataclasses.replace(config, untagged="skip"), "train")
    assert len(tagged) == sum(len(i) > 0 for i in ids) < len(mapped) == len(digits)
    assert all(len(i) for i in tagged.column("hashtags"))


def test_vocabulary_and_skipping_need_hashtags(tmp_path):
    import cv2

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), np.zeros((8, 8, 3), np.uint8))
    _build([["a"]])[0].save(tmp_path / "v.json")
    for options, words in (
        ({"vocabulary": str(tmp_path / "v.json")}, "no hashtags"),
        ({"untagged": "skip"}, "needs hashtags"),
    ):
        with pytest.raises(UserError, match=words):
            source.open_source(source.DataConfig(name=str(tmp_path), **options), "train")
