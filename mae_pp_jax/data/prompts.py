"""Texts that name classes for zero-shot classification: templates, names of classes, and the public files of both.

Files are read as they are published: text with one entry a line, JSON, or NumPy arrays of text. What they hold stays as
it is written, in any language; only white space at its ends is removed.
"""

import io
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import class_names, text

PLACE = re.compile(r"\{c?\}|%s")  # where the name stands: as in most lists, in CLIP_benchmark's, and in C's manner

# English, in words of our own.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}", "this is a {}.", "an image that shows a {}.", "one can see a {} here.", "look, a {}!"),
    "photo": (
        "a photograph of a {}.",
        "a snapshot of a {} taken outdoors.",
        "a {}, photographed from nearby.",
        "a {} seen from far away.",
        "a picture from our holidays with a {} in it.",
        "a dark, grainy picture of a {}.",
        "a sharp picture of a {} in daylight.",
        "several of the kind {} in one photograph.",
        "a photograph in which part of a {} is hidden.",
    ),
    "drawing": (
        "a drawing of a {}.",
        "clip art of a {}.",
        "a simple icon that stands for a {}.",
        "a {} drawn in a few black lines.",
        "a colourful cartoon of a {}.",
        "a painted {}.",
        "a {} as a logo on white ground.",
    ),
}


def templates(choice: str, key: str) -> tuple[str, ...]:
    """Templates that hold {} once each.

    Args:
      choice: names from `TEMPLATES` joined by commas, "all", or a file: .txt with one template a line, .json with a
        list, or .npy with an array of text.
      key: names it in messages.

    Raises:
      UserError: the file cannot be read, or an entry has no place for the name, or several.
    """
    if choice == "all":
        return tuple(template for own in TEMPLATES.values() for template in own)
    names = [name.strip() for name in choice.split(",")]
    if all(name in TEMPLATES for name in names):
        return tuple(template for name in dict.fromkeys(names) for template in TEMPLATES[name])
    if not pathlib.Path(choice).suffix:
        raise UserError(f"{key}: {choice!r} is neither a file nor among {', '.join(TEMPLATES)}, all")
    found, out = _read(choice, key), []
    if isinstance(found, Mapping):
        raise UserError(f"{key}: {choice} must hold a list of templates, not an object")
    for where, template in found:
        if not isinstance(template, str):
            raise UserError(f"{key}: {choice}, {where}: a template must be one text, not {template!r}")
        places = len(PLACE.findall(template))
        if places != 1:
            raise UserError(
                f"{key}: {choice}, {where}: {template!r} has {places or 'no'} places for the name of the class; write "
                "{} exactly once"
            )
        out.append(PLACE.sub("{}", template))
    return tuple(out)


def names(path: str, classes: Sequence[str], key: str) -> tuple[tuple[str, ...], ...]:
    """What each class of a set is called, one name or several.

    Args:
      path: a file: .txt with one class a line, .json with a list of names or of lists of names, or an object, class →
        name or list of names, or .npy with an array of text, one class a row. Lists are in the order of the classes.
        Empty: the names of the classes themselves, of ImageNet's ids the first of their words.
      classes: names of the classes in the data.
      key: names the file in messages.

    Raises:
      UserError: the file cannot be read, or does not name all classes and no others.
    """
    if not path:
        words = class_names.imagenet()
        return tuple(
            (words.get(name, name).split(", ")[0] if name in words else name.replace("_", " "),) for name in classes
        )
    found = _read(path, key)
    if not isinstance(found, Mapping):
        if len(found) != len(classes):
            raise UserError(
                f"{key}: {path} names {len(found)} classes, but the data has {len(classes)}; give one for each"
            )
        return tuple(_several(value, f"{key}: {path}, {where}") for where, value in found)
    given = {text.name(name): value for name, value in found.items()}
    known = {text.name(name) for name in classes}
    for name in given:
        if name not in known:
            raise UserError(f"{key}: {path}: the data has no class '{name}'{class_names.hint(name, sorted(known))}")
    for name in classes:
        if text.name(name) not in given:
            raise UserError(f"{key}: {path} has no name for the class '{name}'; give one for each")
    return tuple(_several(given[text.name(name)], f"{key}: {path}, class '{name}'") for name in classes)


def texts(names: Sequence[Sequence[str]], templates: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Every name of every class in every template, and the class of each: int64 [texts]."""
    filled = [
        (template.replace("{}", name), number)
        for number, own in enumerate(names)
        for name in own
        for template in templates
    ]
    return [written for written, _ in filled], np.array([number for _, number in filled], np.int64)


def _several(value: Any, where: str) -> tuple[str, ...]:
    """The names of one class: those of a list that are not empty, each once, or one."""
    entries = [value] if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"{where}: must be a name or a list of names, not {value!r}")
    found = tuple(dict.fromkeys(filter(None, map(str.strip, entries))))
    if not found:
        raise UserError(f"{where}: the class has no name")
    return found


def _read(path: str, key: str) -> list[tuple[str, Any]] | dict[str, Any]:
    """The entries of a file, each with where it stands ("line 3"), or the content of a JSON object."""
    suffix = pathlib.Path(path).suffix.lower()
    readers = {".txt": _lines, ".json": _json, ".npy": _array}
    if suffix not in readers:
        raise UserError(f"{key}: cannot read {path}: write .txt with one entry a line, .json, or .npy with text")
    try:
        content = pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{key}: cannot read {path}: {error.strerror}") from error
    found = readers[suffix](content, f"{key}: {path}")
    if not found:
        raise UserError(f"{key}: {path} is empty")
    return found


def _lines(content: bytes, where: str) -> list[tuple[str, str]]:
    """Lines that are not blank. They end at line feeds alone: other characters that end lines occur in text."""
    found = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            entry = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}, line {number}: is not in UTF-8 ({error.reason}); save the file in UTF-8"
            ) from error
        if entry:
            found.append((f"line {number}", entry))
    return found


def _json(content: bytes, where: str) -> list[tuple[str, Any]] | dict[str, Any]:
    try:
        found = json.loads(content.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON in UTF-8 ({error})") from error
    if isinstance(found, dict):
        return found
    if not isinstance(found, list):
        raise UserError(f"{where} must hold a list, or an object, class → name or list of names")
    return [
        (f"entry {number}", entry.strip() if isinstance(entry, str) else entry) for number, entry in enumerate(found, 1)
    ]


def _array(content: bytes, where: str) -> list[tuple[str, Any]]:
    """Rows of an array of text. Objects are refused, since reading them runs code that the file brings."""
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if "Object arrays" in str(error):
            raise UserError(
                f"{where} holds Python objects, which may run code when they are read; save the texts as text, by "
                "numpy.save(path, array.astype(str)), where you trust the file"
            ) from error
        raise UserError(f"{where} is no array of NumPy's ({' '.join(str(error).split())})") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "US" or found.ndim not in (1, 2):
        kind = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "several arrays"
        raise UserError(f"{where} must hold text, one row for each entry, not {kind}")
    try:
        rows = (np.char.decode(found, "utf-8") if found.dtype.kind == "S" else found).tolist()
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not in UTF-8 ({error.reason})") from error
    return [(f"entry {number}", row.strip() if isinstance(row, str) else row) for number, row in enumerate(rows, 1)]
