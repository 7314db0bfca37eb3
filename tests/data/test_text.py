"""Text that people wrote is cleaned the same way everywhere; each kind of odd text is one of the cases here."""

import unicodedata

import pytest

from mae_pp_jax.data import text

THREE = ("dog", "cat", "bird")


@pytest.mark.parametrize(
    "value",
    [
        "dog cat bird",
        "#dog #cat #bird",
        "#dog #cat, #bird",
        "#dog,#cat #bird",
        "dog, cat; bird",
        "#dog#cat#bird",
        "＃dog＃cat ﹟bird",
        "dog，cat、bird",
        "dog；cat｜bird",
        "dog، cat؛ bird",
        "dog|cat|bird",
        "dog\tcat\tbird",
        "dog\ncat\r\nbird\n",
        " dog cat bird, ",
        ",dog,,cat,bird,",
        "dog\u00a0cat\u3000bird",
        "dog, cat, bird, dog",
        "'dog', 'cat', 'bird'",
        '"dog", "cat", "bird"',
        "“dog”, “cat”, “bird”",
        "['dog', 'cat', 'bird']",
        '["dog", "cat", "bird"]',
        "['dog' 'cat'\n 'bird']",
        "[u'dog', u'cat', u'bird']",
        "['dog', None, nan, 'cat', 'bird']",
        "[dog, cat, bird]",
        "{dog,cat,bird}",
        "('dog', 'cat', 'bird')",
        "[dog cat bird]",
        ["dog", "cat", "bird"],
        ("#dog #cat", "bird"),
        ["dog,cat", None, float("nan"), "", " bird ", "#dog"],
        [["dog"], ["cat", "bird"]],
        b"dog, cat, bird",
        "dog&#44; cat&comma; bird",
        "do\u200bg, \ufeffcat, bi\u00adrd\u200f",
    ],
)
def test_three_tags_however_they_are_written(value):
    assert text.tags(value) == THREE


@pytest.mark.parametrize(
    "value, expected",
    [
        ("ice cream, dog", ("ice cream", "dog")),
        ("ice cream\tdog", ("ice cream", "dog")),
        (["ice cream"], ("ice cream",)),
        ('["ice cream", "it\'s"]', ("ice cream", "it's")),
        ("['it\\'s', \"o'clock\"]", ("it's", "o'clock")),
        ("black &amp; white, Tom &amp;amp; Jerry", ("black & white", "Tom & Jerry")),
        ("'90s, rock'n'roll", ("'90s", "rock'n'roll")),
        ("- & ... !", ()),
        ("[]", ()),
        ("[[", ()),
        ("[1, 2.0]", ("1", "2")),
        (5, ("5",)),
        ([3.0, float("inf")], ("3",)),
        ("nan", ("nan",)),  # a text; what stands for nothing in a table is known where the table is read
        (None, ()),
        (float("nan"), ()),
        ("[" * 10_000 + "]" * 10_000, ()),
    ],
)
def test_tags_of_other_values(value, expected):
    assert text.tags(value) == expected


@pytest.mark.parametrize(
    "value, expected",
    [
        ("❤️ dog", ("❤", "dog")),
        ("dog❤️", ("dog", "❤")),
        ("🐶🐱", ("🐶", "🐱")),
        (["I ❤︎ dogs"], ("I", "❤", "dogs")),
        ("👨‍👩‍👧 👍🏽 👩🏽‍🚀 🏃‍♀️", ("👨‍👩‍👧", "👍🏽", "👩🏽‍🚀", "🏃‍♀")),
        ("🇩🇪🇫🇷", ("🇩🇪", "🇫🇷")),
        ("1️⃣ #️⃣", ("1⃣", "#⃣")),
        ("\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",) * 2,
        ("\ufe0f", ()),
        ("\u200d \u2800 \u3164", ()),
        ("Acme©", ("Acme©",)),
    ],
)
def test_an_emoji_is_a_tag_of_its_own(value, expected):
    assert text.tags(value) == (expected if isinstance(expected, tuple) else (expected,))


@pytest.mark.parametrize(
    "tag",
    [
        *("हिन्दी", "தமிழ்", "น้ำตก", "കവിത", "日本語", "straße", "বাংলা", "ខ្មែរ", "မြန်မာ", "ਪੰਜਾਬੀ", "한국어"),
        *("שָׁלוֹם", "مَدْرَسَة", "Việtnam", "ｆｕｌｌ", "m²", "rock+roll", "big-one", "ice_cream", "_x", "2nd", "b2b", "e30"),
        *("decade", "facade", "🐶", "ꜩabc", "ⴰⵎⴰⵣⵉⵖ", "ᏣᎳᎩ"),
        unicodedata.normalize("NFD", "café"),
        unicodedata.normalize("NFD", "Việtnam"),
    ],
)
def test_hashtags_of_all_scripts_are_whole(tag):
    for caption in (
        f"a picture #{tag} today",
        f"#{tag}",
        f"a picture ＃{tag}.",
        f"(#{tag})",
        f"#{tag}#{tag}",
        f"🐶#{tag}",
    ):
        assert text.hashtags(caption) == (tag,), caption


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("Tom&#39;s boat #sea", ("sea",)),
        ("a &#x27;b&#x27; #sky", ("sky",)),
        ("tea &#128512; #cup &#169 2020", ("cup",)),
        ("twice &amp;#39; and &amp;amp;#8217; #sea", ("sea",)),
        ("&#35;dog is an entity too", ("dog",)),
        ("see http://example.org/p#section-2 #tree", ("tree",)),
        ("https://example.org/#about, www.example.org#top ftp://x/#y #tree", ("tree",)),
        ("example.org/a/#b docs/#intro p#section-2 a.html#x #tree", ("tree",)),
        ("mail me@example.org#x", ()),
        ("C#1 issue#5 F# minor, #1 fan, # 3, #2023", ()),
        ("#fff #ffffff #1e90ff #f00 #1E90FF80 #ffccee #sky", ("sky",)),
        ("#salt&#pepper -#bay, &#xyz", ("salt", "pepper", "bay", "xyz")),
        ("##big ###title", ("big", "title")),
        ("#dog#cat #a/#b,#c", ("dog", "cat", "a", "b", "c")),
        ("#dog❤️ #❤️ #👨‍👩‍👧", ("dog", "❤", "👨‍👩‍👧")),
        ("#end- #stop. #what? *#md* “#said”", ("end", "stop", "what", "md", "said")),
        ("#Dog #dog #Dog", ("Dog", "dog")),
        ("#do\u200bg #می\u200cخواهم", ("dog", "میخواهم")),
        ("", ()),
        (None, ()),
        (float("nan"), ()),
    ],
)
def test_what_is_a_hashtag_in_a_caption(caption, expected):
    assert text.hashtags(caption) == expected


def test_names():
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert nfc != nfd and text.name(nfd) == text.name(f" {nfc}\n") == nfc
    assert text.name("two\nlines\r\n\u2028of  it\x85") == "two lines of it"
    assert text.name("Tom &amp; Jerry") == "Tom & Jerry" and text.name("do\u00adg\u200b") == "dog"
    assert text.name(["cat"]) == text.name(b"cat") == text.name("cat") == "cat"
    assert text.name(3.0) == text.name(3) == "3" and text.name(2.5) == "2.5" and text.name("3.0") == "3.0"
    assert text.name("nan") == "nan" and text.name("None") == "None"
    assert text.name("caf\udce9") == "caf\\xe9" and text.name("\ud83d") == "\ufffd"
    for nothing in (
        None,
        "",
        " ",
        "\u200b",
        "\u2800",
        "&nbsp;",
        float("nan"),
        float("-inf"),
        [],
        [None],
        ["", " "],
        b" ",
    ):
        assert text.name(nothing) == "", nothing


def test_captions_stay_as_they_were_written_but_for_entities():
    decomposed = unicodedata.normalize("NFD", "café")
    assert text.plain(f" {decomposed} &quot;x&quot;\n and ❤️ \n") == f'{decomposed} "x"\n and ❤️'
    assert text.plain("R&D, a&b; AT&T &unknown; &amp;lt;") == "R&D, a&b; AT&T &unknown; <"


def test_cells_of_tables_that_say_nothing():
    assert [text.cell(c) for c in ("nan", "NaN", "<NA>", " null ", "NULL", "\\N", "#N/A")] == [None] * 7
    kept = ("", "none", "None", "NA", "Nan", "nan, naan", "0")
    assert tuple(map(text.cell, kept)) == kept


def test_an_object_is_no_list_of_hashtags():
    for value in ({"dog": 0.9}, [{"name": "dog"}], '{"dog": 0.9}', '[{"name": "dog"}]'):
        with pytest.raises(ValueError, match="not an object"):
            text.tags(value)


def test_spellings_of_a_tag():
    assert text.glue("dog❤️") == text.glue("DOG\ufe0f") == text.glue("ｄｏｇ") == "dog"
    assert text.glue("❤️") == text.glue("❤") == "❤" and text.glue("1️⃣") == "1⃣"
    assert text.glue("\ufe0f") == text.glue("\u0301") == text.glue("-") == ""
    assert text.glue("น้ำตก") == unicodedata.normalize("NFKC", "น้ำตก")
