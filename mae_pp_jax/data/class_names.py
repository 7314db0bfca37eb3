"""Names of classes in several datasets: files that map one dataset's to another's, and ImageNet's ids and words."""

import difflib
import functools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import text

PACKAGED = pathlib.Path(__file__).with_name("class_maps")
# Files that a user gets with their dataset, or from its authors → where they are published.
_OBJECTNET = "it is in the folder mappings/ of ObjectNet's archive objectnet-1.0.zip, from objectnet.dev"
_PUBLISHED = {
    "objectnet_to_imagenet_1k.json": _OBJECTNET,
    "folder_to_objectnet_label.json": _OBJECTNET,
    "real.json": "it is published at github.com/google-research/reassessed-imagenet",
}
_FORM = "must hold a list of names, or an object, name in this set → name in the training data, or a list of such names"


@functools.cache
def imagenet() -> dict[str, str]:
    """WordNet id → words of the 1,000 classes of ImageNet, in the order of the outputs of published models."""
    return json.loads((PACKAGED / "imagenet_1k.json").read_bytes())["classes"]


def imagenet_ids(names: Sequence[str]) -> tuple[str, ...]:
    """The WordNet ids of the classes that `names` are in words, in ImageNet's usual order; empty where they are not."""
    ends = len(names) == 1000 and (names[0].lower()[:5], names[-1].lower()[:6])
    return tuple(imagenet()) if ends == ("tench", "toilet") else ()


def with_words(name: str) -> str:
    """A name of a class as people read it: a WordNet id of ImageNet's with its words behind it, others as they are."""
    return f"{name} {words}" if (words := imagenet().get(name)) else name


class Outputs:
    """The classes that the outputs of a model stand for, found by name; ImageNet's also by id or by words.

    Args:
      names: of the outputs, in order.

    Attributes:
      names: as given, or the WordNet ids of ImageNet's classes where these are its words.
    """

    def __init__(self, names: Sequence[str]):
        self.names = imagenet_ids(names) or tuple(names)
        self._places: dict[str, set[int]] = {}
        for given in (names, self.names):
            for place, name in enumerate(given):
                self._places.setdefault(name, set()).add(place)

    def find(self, name: str) -> tuple[int, ...]:
        """The places of a name among the outputs: none where the model has no such class, several where many have it."""
        if name in self._places:
            return tuple(sorted(self._places[name]))
        ids = _ids_of_words().get(name, ())
        return tuple(sorted(place for known in ids for place in self._places.get(known, ())))

    def find_all(self, value: str | Sequence[str], where: str, by: str) -> tuple[int, ...]:
        """The places of the name or names that a file gives for one class or image.

        Args:
          value: a name, several in a list, or several in a text that parts them by "; " as ObjectNet's file does.
          where: file and key, for messages.
          by: who says what the outputs stand for, for messages.

        Raises:
          UserError: a name is that of no class or of several.
        """
        if isinstance(value, str):
            value = (value,) if self.find(value) else value.split("; ")
        found = []
        for name in map(text.name, value):
            places = self.find(name)
            if not places:
                words = _ids_of_words() if self._places.keys() & imagenet().keys() else ()
                raise UserError(f"{where}: '{name}' is no class of {by}{hint(name, [*self._places, *words])}")
            if len(places) > 1:
                raise UserError(f"{where}: '{name}' is the name of {len(places)} classes of {by}: which is meant?")
            found.extend(places)
        return tuple(dict.fromkeys(found))


@functools.cache
def _ids_of_words() -> dict[str, tuple[str, ...]]:
    """Words of an ImageNet class → its WordNet ids; `crane` is a bird and a machine."""
    found: dict[str, tuple[str, ...]] = {}
    for known, words in imagenet().items():
        found[words] = (*found.get(words, ()), known)
    return found


def hint(name: str, known: Mapping | Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def read_maps(paths: str, key: str) -> list[tuple[str, dict[str, str | tuple[str, ...]]]]:
    """The files that lead from the classes of a set to those of the training data.

    Args:
      paths: a file, the name of a packaged one, or several joined by commas, each for the names that the one before it
        gives.
      key: names them in messages.

    Returns:
      (path, name → name or names) of each.

    Raises:
      UserError: a file cannot be read, or does not hold names.
    """
    parts = [paths] if pathlib.Path(paths).expanduser().is_file() else [part.strip() for part in paths.split(",")]
    return [(path, _read_map(path, key)) for path in parts]


def _read_map(path: str, key: str) -> dict[str, str | tuple[str, ...]]:
    content = read_json(path, key)
    if isinstance(content, dict) and content.keys() == {"source", "classes"}:  # a packaged one says where it is from
        content = content["classes"]
    if isinstance(content, list):
        content = {name: name for name in content} if all(isinstance(name, str) for name in content) else {}
    found = {}
    for name, value in content.items() if isinstance(content, dict) else ():
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(one, str) for one in names):
            raise UserError(f"{key}: {path} {_FORM}; '{name}' is not so")
        found[text.name(name)] = tuple(map(text.name, value)) if isinstance(value, list) else text.name(value)
    if not found:
        raise UserError(f"{key}: {path} {_FORM}")
    return found


def read_json(path: str, key: str) -> Any:
    """The content of a user's JSON file, or of the packaged one of this name.

    Raises:
      UserError: it cannot be read, or is no JSON; says where it is published if that is known.
    """
    file = pathlib.Path(path).expanduser()
    packaged = PACKAGED / f"{path}.json"
    if re.fullmatch(r"\w+", path) and not file.exists() and packaged.is_file():
        file = packaged
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        told = f"; {_PUBLISHED[file.name]}" if file.name in _PUBLISHED else ""
        if not file.suffix:
            told = f"; packaged are {', '.join(sorted(p.stem for p in PACKAGED.glob('*.json')))}"
        raise UserError(f"{key}: cannot read {path}: {error.strerror}{told}") from error
    except ValueError as error:
        raise UserError(f"{key}: {path} is no JSON ({error})") from error
