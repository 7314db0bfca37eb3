"""The one place where text that people wrote is cleaned: captions, names of classes and splits, and hashtags.

All readers of `data build`, the vocabulary and training use these functions. `plain`, `name`, `tags` and `glue` change
nothing in what they have cleaned before.

`plain` gives captions, `name` the names of classes and splits, `tags` and `hashtags` the hashtags of a column and of a
caption. All four resolve HTML entities, take a missing value for nothing and remove white space at the ends; but for
`plain` they also remove invisible characters (Unicode's default ignorable code points: variation selectors, zero-width
spaces, marks of direction). Names are in form NFC. Hashtags keep the form in which they were written, because NFKC
splits and reorders the marks of some scripts (Thai, Hebrew, Arabic); `glue` compares them in NFKC.
"""

import contextlib
import html
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import regex

# One emoji as people see it: a keycap, a flag, or a picture with its skin tone, its tags and what a joiner adds to it.
_PICTURE = r"(?![©®])\p{ExtPict}[\uFE0E\uFE0F]?\p{EMod}?\uFE0F?"
_EMOJI = rf"[0-9#*]\uFE0F?\u20E3|\p{{RI}}{{2}}|{_PICTURE}(?:\u200D{_PICTURE})*(?:[\U000E0020-\U000E007E]+\U000E007F)?"
_EMOJI_OR_INVISIBLE = regex.compile(rf"({_EMOJI})|\p{{DI}}|\u2800")
_SELECTORS = re.compile("[\ufe0e\ufe0f]")

# An entity ends in a semicolon, or is the number of a character, for which HTML does without.
_ENTITY = re.compile(r"&(?:(amp;)+|\w+;|#[0-9]+;?|#[xX][0-9a-fA-F]+;?)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNDECODED = range(0xDC80, 0xDD00)  # the surrogates by which Python writes the bytes of a file name that is no UTF-8

_HASH = "#＃﹟"
# What separates hashtags besides # and spaces, in ASCII, full-width, ideographic and Arabic writing.
_SEPARATORS = r",;|\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029，；｜、﹐﹑﹔､،؛•"
_ENDS = regex.compile(rf"^[\s{_SEPARATORS}]+|[\s{_SEPARATORS}]+$")
_SEPARATED = regex.compile(rf"[{_SEPARATORS}]")
_CUT = regex.compile(rf"({_EMOJI})|[{_SEPARATORS}{_HASH}]")
_QUOTES = '"“”„«»'
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_QUOTED = re.compile(r"""[ubr]?"((?:[^"\\]|\\.)*)"|[ubr]?'((?:[^'\\]|\\.)*)'|([^\s,;'"]+)""", re.S)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|(.))", re.S)
_BEGINS_QUOTED = re.compile(r"""(?:^|[\s,;])[ubr]?["']""")

# UAX #31, UAX31-R8: hashtag identifiers, of which emoji are a part; those of digits alone are numbers.
_CONTINUE = rf"(?:{_EMOJI}|[\p{{XID_Continue}}\p{{N}}+-])"
_HASHTAGS = regex.compile(rf"(?<![\p{{XID_Continue}}\p{{N}}/])(?:[{_HASH}]({_CONTINUE}+)/?)+")
_NO_NUMBER = regex.compile(r"[\p{L}\p{ExtPict}\p{RI}\u20E3]")
_ADDRESS = regex.compile(r"(?<![\w+.-])(?:\p{L}[\w+.-]*://|(?i:www)\.|[\w-]+(?:\.[\w-]+)*\.\p{L}{2,}/)\S*")
_COLOUR = re.compile(r"(?=[a-f]*[0-9])(?:[0-9a-f]{6}|[0-9a-f]{8})|(?:([0-9a-f])\1){3}|[0f]{3}", re.I)

# Cells of a table of texts in which programs write that there is no value: numpy, pandas, databases, MySQL, Excel.
_EMPTY_CELLS = frozenset(("nan", "NaN", "<NA>", "null", "NULL", "\\N", "#N/A"))


def missing(value: Any) -> bool:
    """Whether a value of a column is none: null, a blank text, or a number that is not finite (JSON's bare NaN)."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or isinstance(value, (str, bytes)) and not value.strip()


def cell(content: str) -> str | None:
    """A cell of a CSV file, in which a missing value can only be written as text; None for one of `_EMPTY_CELLS`.

    Other words for nothing, such as `none` or `NA`, are names that classes have. A JSON text "nan" stays text.
    """
    return None if content.strip() in _EMPTY_CELLS else content


def plain(value: Any) -> str:
    """A value as text: entities resolved and white space removed at its ends; "" where it is `missing`.

    Bytes are UTF-8, several values become one text, a whole number is written without a point (tables with missing
    values hold 3 as 3.0), an object is written as JSON.
    """
    if isinstance(value, (list, tuple)):
        return " ".join(filter(None, map(plain, value)))
    if missing(value):
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    elif isinstance(value, Mapping):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = _SURROGATE.sub(_readable, str(value))
    while (resolved := _ENTITY.sub(lambda e: "&" if e[1] else html.unescape(e[0]), text)) != text:
        text = resolved  # again, since much text of the web is written as HTML twice: &amp;#39;
    return text.strip()


def name(value: Any) -> str:
    """The name of a class or split: on one line, in form NFC, without invisible characters; "" where there is none."""
    return " ".join(unicodedata.normalize("NFC", _visible(plain(value))).split())


def tags(value: Any) -> tuple[str, ...]:
    """The hashtags of a value: a list, a list that was written as text, or text with separators; without repeats.

    Separators are # and those of `_SEPARATORS`, and spaces in text that has none of the latter at all ("#dog #cat", but
    "ice cream, dog"). An entry of a list may hold several tags, but spaces do not separate them. An emoji is a tag
    by itself. What has no letter, digit or emoji is no tag.

    Raises:
      ValueError: there is an object in place of text or a list.
    """
    if isinstance(value, Mapping):
        raise ValueError("hashtags must be text or a list of texts, not an object")
    if isinstance(value, (list, tuple)):
        return tuple(dict.fromkeys(tag for entry in value for tag in _entry(entry)))
    text = _visible(plain(value))
    inside = _inside_brackets(text)
    if isinstance(inside, list):
        return tags(inside)
    inside = _ENDS.sub("", inside)
    return tuple(dict.fromkeys(_cut(inside, spaces=not _SEPARATED.search(inside))))


def hashtags(caption: Any) -> tuple[str, ...]:
    """The hashtags in running text, by Unicode's definition (UAX #31, requirement R8), cut as `tags` cuts them.

    # begins one where no letter, digit or / stands before it, and outside addresses. A number (#1) and a colour are
    none: six or eight hexadecimal digits with a decimal one (#1e90ff) or in pairs (#ffccee), and three of 0 and f
    (#fff, #f00); others, such as #b2b and #decade, are words that people use.
    """
    text = _ADDRESS.sub(" ", _visible(plain(caption)))
    found = (tag.strip("-") for match in _HASHTAGS.finditer(text) for tag in match.captures(1))
    real = (tag for tag in found if _NO_NUMBER.search(tag) and not _COLOUR.fullmatch(tag))
    return tuple(dict.fromkeys(part for tag in real for part in _cut(tag, spaces=False)))


def glue(tag: str) -> str:
    """How a tag looks as a hashtag: its letters with their marks and digits in form NFKC, without case.

    Of a tag without letters and digits its emoji remain. "" for one that has none of them.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", tag).casefold())
    if folded.isascii():
        return "".join(filter(str.isalnum, folded))
    pieces = _CUT.split(_visible(folded))  # texts, and between them an emoji or, for a separator, None
    words = "".join(c for text in pieces[::2] for c in text if unicodedata.category(c)[0] in "LMN")
    words = unicodedata.normalize("NFKC", regex.sub(r"^\p{M}+", "", words))  # what a separator stood between may join
    return words or "".join(filter(None, pieces[1::2]))


def _readable(surrogate: re.Match) -> str:
    r"""A byte that is no UTF-8 as `\xe9`, so that two names stay two; half a pair of UTF-16 as U+FFFD."""
    code = ord(surrogate[0])
    return f"\\x{code - 0xDC00:02x}" if code in _UNDECODED else "\ufffd"


def _visible(text: str) -> str:
    """Text without invisible characters, variation selectors among them; joiners within an emoji stay."""
    if text.isascii():
        return text
    return _EMOJI_OR_INVISIBLE.sub(lambda match: _SELECTORS.sub("", match[1] or ""), text)


def _entry(entry: Any) -> tuple[str, ...]:
    """The tags in an entry of a list."""
    if isinstance(entry, (list, tuple, Mapping)):
        return tags(entry)
    return tuple(_cut(_visible(plain(entry)), spaces=False))


def _inside_brackets(text: str) -> list | str:
    """The entries of a list that was written as text (JSON, Python, numpy); other text without brackets around it."""
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1]:
        return text
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(found := json.loads(text), (list, dict)):
            return found if isinstance(found, list) else [found]
    inside = text[1:-1].strip()
    if not _BEGINS_QUOTED.search(inside):
        return inside if text[0] not in inside else text
    entries = ((double or single, bare) for double, single, bare in _QUOTED.findall(inside))
    return [_ESCAPE.sub(_unescaped, quoted) or (cell(bare) if bare != "None" else None) for quoted, bare in entries]


def _unescaped(escape: re.Match) -> str:
    """The character that JSON or Python write with a backslash."""
    number = escape[1] or escape[2] or escape[3]
    return chr(int(number, 16)) if number else {"n": "\n", "t": "\t"}.get(escape[4], escape[4])


def _cut(text: str, *, spaces: bool):
    """Tags of text at separators and emoji, and at spaces if these separate."""
    for piece in filter(None, _CUT.split(text)):
        if _CUT.fullmatch(piece):
            yield piece
            continue
        for word in piece.split() if spaces else (piece,):
            word = _unquoted(word)
            if glue(word):
                yield word


def _unquoted(word: str) -> str:
    """Without quotation marks and spaces at its ends; a single apostrophe (`'90s`) stays."""
    before = None
    while word != before:
        before, word = word, word.strip().strip(_QUOTES)
        if word[:1] == word[-1:] == "'":
            word = word.strip("'")
    return word
