"""Raw hashtags → the classes of weakly supervised pretraining (Mahajan et al. 2018, section 2; Singh et al. 2023, section 3).

`build` makes a vocabulary from counted tags: equal when written without case, #, separators; plural with singular;
synonyms merged by WordNet's synsets. Its file lists the members of every class and the rules, and is all that training
needs: `Vocabulary.ids` gives the same classes for the same tags, without WordNet.
"""

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable

import numpy as np

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import text, wordnet

FORMAT = 1
_REMEMBERED = 2**18  # tags
# Tags about posting, not about the picture: by what hashtag studies list as most used on photo platforms.
STOP_TAGS = tuple(
    (
        "beautiful beautifulday bestoftheday cute fashionblogger follow follow4follow followback followforfollow followme "
        "fun happy hashtag igdaily igers instadaily instagood instagram instalike instamood instapic l4l like like4like "
        "likeforlike likes love me myself nofilter ootd photo photography photooftheday picoftheday picture post repost "
        "selfie share style tag tagsforlikes tbt throwbackthursday unsorted untagged"
    ).split()
)


@dataclasses.dataclass(frozen=True)
class Rules:
    """How tags become classes.

    Attributes:
      stop: tags left out, in any spelling.
      min_count: images that a class needs.
      size: the most classes kept, the commonest first.
      unknown: tags that are no noun of WordNet: `drop` them, or `keep` each as a class of its own.
    """

    stop: tuple[str, ...] = STOP_TAGS
    min_count: int = 5
    size: int = 28_000
    unknown: str = "drop"


@dataclasses.dataclass(frozen=True)
class TagClass:
    """One class of the vocabulary.

    Attributes:
      name: the synset's first word, or the tag; unique.
      synset: WordNet's id in ImageNet's writing (`n02084071`), or None for a plain tag.
      count: images that carry the class.
      members: glued tag → images that carry it; words of the synset that nobody used have 0.
    """

    name: str
    synset: str | None
    count: int
    members: dict[str, int]


class Vocabulary:
    """Classes, and the map from raw tags to them.

    Attributes:
      classes: in the order of their ids: by falling count, then by name.
      rules: how they were made, as in the file.
      dataset: what the tags were counted on.
      fingerprint: a short hash of the map from tags to ids.
    """

    def __init__(self, classes: Iterable[TagClass], rules: dict, dataset: dict):
        self.classes, self.rules, self.dataset = tuple(classes), rules, dataset
        self.names = tuple(c.name for c in self.classes)
        written = {member: i for i, c in enumerate(self.classes) for member in c.members}
        identity = json.dumps([self.names, sorted(written.items())], ensure_ascii=False)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
        # Older vocabularies may have members with invisible characters; of two that become one, the one without counts.
        glued = [(text.glue(member), member) for member in written]
        self._ids: dict[str, int] = {}
        for tag, member in sorted(glued, key=lambda pair: pair[0] != pair[1]):
            if tag:
                self._ids.setdefault(tag, written[member])
        # Tags repeat: finding the classes of one takes 10 µs, looking them up again less than one.
        self._ids_of = functools.lru_cache(_REMEMBERED)(self._find_all)
        self._irregular, self._separate = rules["irregular_plurals"], frozenset(rules["no_plurals"])

    def id(self, tag: str) -> int | None:
        """The class of one tag, or None outside the vocabulary."""
        glued = text.glue(tag)
        if glued in self._ids or glued in self._separate:
            return self._ids.get(glued)
        noun = wordnet.singular(glued, self._ids.__contains__, self._irregular)
        return None if noun is None else self._ids[noun]

    def ids(self, tags: Iterable[str]) -> np.ndarray:
        """The classes of an image's raw tags: int32, rising, without repeats; tags outside the vocabulary are dropped."""
        return np.array(sorted({i for tag in tags for i in self._ids_of(tag)}), np.int32)

    def _find_all(self, raw: str) -> tuple[int, ...]:
        """The classes of a raw tag, which may be several tags in one text (`text.tags`)."""
        return tuple(i for tag in text.tags([raw]) if (i := self.id(tag)) is not None)

    def save(self, path: storage.Path) -> None:
        """Writes the vocabulary as JSON, whole or not at all; the same vocabulary gives the same bytes."""
        content = dict(format=FORMAT, dataset=self.dataset, rules=self.rules)
        storage.write_json(path, content | {"classes": [dataclasses.asdict(c) for c in self.classes]}, "--to")

    @classmethod
    def load(cls, path: str) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises:
          UserError: no such file, or not a vocabulary.
        """
        try:
            content = json.loads(storage.read_bytes(storage.path(path, "data.vocabulary").expanduser()))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, not {FORMAT}")
            return cls([TagClass(**c) for c in content["classes"]], content["rules"], content["dataset"])
        except OSError as error:
            raise UserError(
                f"data.vocabulary: cannot read {path}: {error.strerror}; make it with "
                "python -m mae_pp_jax data hashtags --name=NAME --to=FILE"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"data.vocabulary: {path} is no vocabulary of `data hashtags` ({error})") from error


@dataclasses.dataclass
class Counts:
    """Raw tags counted over images.

    Attributes:
      images: number of images.
      sets: each distinct set of glued tags (sorted) → images that carry exactly it.
      raw: number of different raw tags.
      empty: raw tags without a letter, digit or emoji, as `ascii` shows them → images that carry them.
    """

    images: int
    sets: collections.Counter
    raw: int
    empty: collections.Counter

    def tags(self) -> collections.Counter:
        """Glued tag → images that carry it."""
        out: collections.Counter = collections.Counter()
        for tags, images in self.sets.items():
            for tag in tags:
                out[tag] += images
        return out


def count(images: Iterable[Iterable[str]]) -> Counts:
    """Counts the raw tags of images, cleaned (`text.tags`); spellings of one tag on one image count once."""
    sets: collections.Counter = collections.Counter()
    glued: dict[str, set[str]] = {}
    empty: collections.Counter = collections.Counter()
    total = 0
    for tags in images:
        total += 1
        for raw in tags:
            if raw not in glued:
                glued[raw] = {text.glue(tag) for tag in text.tags([raw])}
        empty.update({ascii(raw) for raw in tags if not glued[raw]})
        sets[tuple(sorted(set().union(*(glued[raw] for raw in tags))))] += 1
    return Counts(total, sets, len(glued), empty)


def build(counts: Counts, rules: Rules, nouns: wordnet.Nouns | None, dataset: dict) -> tuple[Vocabulary, dict]:
    """Makes the vocabulary of counted tags.

    Args:
      counts: the tags.
      rules: how tags become classes.
      nouns: WordNet; without it every tag is a class of its own, with its plural in -s if the singular is a tag too.
      dataset: what the tags were counted on, kept in the file.

    Returns:
      The vocabulary, and what became of the tags that are not in it: reason → Counter of glued tags.

    Raises:
      UserError: no class is left.
    """
    tags = counts.tags()
    stop = {text.glue(tag) for tag in rules.stop}
    dropped: dict = {reason: collections.Counter() for reason in ("stop", "not a noun", "rare", "beyond the size")}
    dropped |= {"no letter, digit or emoji": counts.empty} if counts.empty else {}
    class_of: dict[str, str] = {}  # glued tag → key of its class: offset of a synset, or "#" and the tag
    for tag, images in tags.items():
        base, key = _class_key(tag, tags, nouns, rules)
        if tag in stop or base in stop:
            dropped["stop"][tag] = images
        elif key is None:
            dropped["not a noun"][tag] = images
        else:
            class_of[tag] = key
    images_of: collections.Counter = collections.Counter()
    for members, images in counts.sets.items():
        for key in {class_of[tag] for tag in members if tag in class_of}:
            images_of[key] += images
    members: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for tag in sorted(class_of):
        members[class_of[tag]][tag] = tags[tag]
    found = [_tag_class(key, images_of[key], members[key], nouns, stop) for key in sorted(members)]
    found.sort(key=lambda c: (-c.count, c.name, c.synset or ""))
    kept = []
    for tag_class in found:
        reason = "rare" if tag_class.count < rules.min_count else "beyond the size" if len(kept) >= rules.size else None
        if reason:
            dropped[reason].update({tag: n for tag, n in tag_class.members.items() if n})
        else:
            kept.append(tag_class)
    if not kept:
        raise UserError(f"--min_count: no hashtag is on {rules.min_count} images; lower it or look at the tags")
    irregular = _irregular(kept, nouns)
    written = dataclasses.asdict(rules) | {
        "spelling": "Unicode NFKC, case folded, letters, marks and digits alone, or an emoji",
        "plurals": "WordNet's exceptions and endings, of words that are known",
        "wordnet": nouns.digest if nouns else None,
        "irregular_plurals": irregular,
        "no_plurals": _separate(kept, irregular, {*tags, *stop, *(nouns.synset_of if nouns else ())}),
    }
    return Vocabulary(_unique(kept), json.loads(json.dumps(written)), dataset), dropped


def _class_key(tag: str, tags, nouns: wordnet.Nouns | None, rules: Rules) -> tuple[str, str | None]:
    """The known word that a glued tag is, or is the plural of; and its class: a synset, or "#" and the word, or None."""
    synsets = nouns.synset_of if nouns else {}
    plain = nouns is None or rules.unknown == "keep"
    base = tag
    if tag not in synsets:
        irregular = nouns.irregular if nouns else {}
        base = wordnet.singular(tag, lambda word: word in synsets or (plain and word in tags), irregular) or tag
    return base, synsets.get(base) or (f"#{base}" if plain else None)


def _tag_class(key: str, images: int, used: dict[str, int], nouns: wordnet.Nouns | None, stop) -> TagClass:
    if key.startswith("#"):
        return TagClass(name=key[1:], synset=None, count=images, members=used)
    words = nouns.words[key]
    unused = {glued: 0 for word in words if nouns.synset_of.get(glued := text.glue(word)) == key and glued not in stop}
    name = words[0].replace("_", " ")
    return TagClass(name=name, synset=f"n{key}", count=images, members=dict(sorted((unused | used).items())))


def _irregular(kept: list[TagClass], nouns: wordnet.Nouns | None) -> dict[str, str]:
    """The irregular plurals of the vocabulary's own words."""
    own = {member for c in kept for member in c.members}
    return {plural: word for plural, word in sorted(nouns.irregular.items()) if word in own} if nouns else {}


def _separate(kept: list[TagClass], irregular: dict[str, str], words: set[str]) -> list[str]:
    """Words that look like the plural of a class's member and are not in it: words of their own, or left out."""
    own = {member for c in kept for member in c.members}
    return sorted(w for w in words - own if wordnet.singular(w, own.__contains__, irregular) is not None)


def _unique(classes: list[TagClass]) -> list[TagClass]:
    """Names that occur twice get their synset beside them."""
    seen = collections.Counter(c.name for c in classes)
    return [
        dataclasses.replace(c, name=f"{c.name} ({c.synset})") if seen[c.name] > 1 and c.synset else c for c in classes
    ]
