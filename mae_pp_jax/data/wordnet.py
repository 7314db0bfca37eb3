"""WordNet's nouns, read from its own database files (`index.noun`, `data.noun`, `noun.exc`; WordNet 3.0 manual, wndb(5)).

Debian's package `wordnet-base` puts them into /usr/share/wordnet. A hashtag has no spaces, so lemmas are looked up in
"glued" form: letters and digits alone (`ice_cream` → `icecream`).
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data.text import glue

# WordNet's rules of detachment for nouns, in its order (morphy(7WN)).
ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
_SHORTEST_PLURAL = 4  # letters; "gas" and "bus" are no plurals


@dataclasses.dataclass(frozen=True)
class Nouns:
    """The nouns of one WordNet.

    Attributes:
      synset_of: glued lemma → offset of its synset: the first sense, which is the most frequent one.
      words: offset → the synset's lemmas as written (`ice_cream`), the most usual first.
      irregular: glued irregular plural → glued singular (`feet` → `foot`).
      digest: short hash of the files.
    """

    synset_of: dict[str, str]
    words: dict[str, tuple[str, ...]]
    irregular: dict[str, str]
    digest: str


def singular(tag: str, known: Callable[[str], bool], irregular: dict[str, str]) -> str | None:
    """The known word of which a glued tag is the plural, by the exceptions and then the rules; None if there is none."""
    if known(irregular.get(tag, "")):
        return irregular[tag]
    if len(tag) >= _SHORTEST_PLURAL and not tag.endswith("ss"):
        for ending, replacement in ENDINGS:
            if tag.endswith(ending) and known(word := tag[: -len(ending)] + replacement):
                return word
    return None


def find(path: str = "") -> pathlib.Path | None:
    """The folder of WordNet's files: `path`, else where WordNet's own variables say, else Debian's; None if absent.

    Raises:
      UserError: `path` is given and holds no `index.noun`.
    """
    if path:
        folder = pathlib.Path(path).expanduser()
        for candidate in (folder, folder / "dict"):
            if (candidate / "index.noun").is_file():
                return candidate
        raise UserError(f"--wordnet: {path} has no file index.noun; name WordNet's folder, such as /usr/share/wordnet")
    home = os.environ.get("WNHOME", "")
    places = (os.environ.get("WNSEARCHDIR", ""), home and os.path.join(home, "dict"), "/usr/share/wordnet")
    return next((pathlib.Path(p) for p in places if p and os.path.isfile(os.path.join(p, "index.noun"))), None)


def load(folder: pathlib.Path) -> Nouns:
    """Reads the nouns; takes about two seconds.

    Raises:
      UserError: a file is missing or not in WordNet's format.
    """
    sha = hashlib.sha256()
    texts = {}
    for name in ("index.noun", "data.noun", "noun.exc"):
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise UserError(f"--wordnet: cannot read {folder / name}: {error.strerror}") from error
        sha.update(content)
        texts[name] = content.decode("utf-8", "replace").splitlines()
    try:
        irregular = {glue(line.split()[0]): glue(line.split()[1]) for line in texts["noun.exc"] if line.strip()}
        words = dict(_synset(line) for line in texts["data.noun"] if not line.startswith("  "))
        return Nouns(_first_senses(texts["index.noun"]), words, irregular, sha.hexdigest()[:16])
    except (IndexError, ValueError) as error:
        raise UserError(f"--wordnet: {folder} is not in WordNet's format ({error})") from error


def _synset(line: str) -> tuple[str, tuple[str, ...]]:
    """A line of data.noun: offset, file, type, number of words (hexadecimal), then words, each with a lexical id."""
    fields = line.split()
    count = int(fields[3], 16)
    return fields[0], tuple(fields[4 : 4 + 2 * count : 2])


def _first_senses(lines: list[str]) -> dict[str, str]:
    """Glued lemma → offset of its first sense.

    A line of index.noun: lemma, part of speech, senses, number of pointer symbols, these, senses, tagged senses,
    offsets. Of lemmas that look the same when glued (`coop`, `co-op`), the one written so comes first, then the one
    with more tagged senses, then the first by name.
    """
    best: dict[str, tuple[tuple, str]] = {}
    for line in lines:
        if line.startswith("  "):  # the licence
            continue
        fields = line.split()
        lemma, pointers = fields[0], int(fields[3])
        glued = glue(lemma)
        rank = (lemma != glued, -int(fields[5 + pointers]), lemma)
        if glued and (glued not in best or rank < best[glued][0]):
            best[glued] = rank, fields[6 + pointers]
    return {glued: offset for glued, (_, offset) in best.items()}
