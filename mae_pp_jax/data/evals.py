"""Evaluation sets: any number of datasets to measure on, with names and numbers as in the training data."""

import collections
import dataclasses
import difflib
import json
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mae_pp_jax.core.config import key
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import fields, images, mixture, text
from mae_pp_jax.data.source import DataConfig, Subset, digest, open_source

log = logging.getLogger(__name__)

NAMED = {"label": "classes", "hashtags": "hashtags"}  # fields of numbers that stand for names → what these are


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """One evaluation set."""

    data: str = key(
        "", "dataset to evaluate on, its classes and hashtags matched by name; empty: data.name", by_content=True
    )
    split: str = key("test", "split to evaluate on")
    crop: str = key(
        "center",
        "how images get their size: their centre, or squeezed whole as the finetuned MAWS models expect",
        choices=("center", "squeeze"),
    )
    share: float = key(
        1.0, "center: share of the shorter side that is kept; MAE and timm at 224 pixels: 0.875", low=0.01, high=1.0
    )
    classes: str = key(
        "",
        "JSON file of the classes that count: a list of names, or an object, name in this set → name in the training "
        "data; images of other classes are left out; empty: all, by name",
        by_content=True,
    )
    evaluators: tuple[str, ...] = key((), "what is measured on it, of what the stage can measure; empty: all")


def names_of(source: fields.Source) -> dict[str, tuple[str, ...]]:
    """Field of `NAMED` → the names that its numbers stand for in a source."""
    return {field: fields.names(source, field) for field in NAMED}


@dataclasses.dataclass(frozen=True)
class Known:
    """What the outputs of a model stand for.

    Attributes:
      names: field of `NAMED` → names.
      by: where they are from, for messages.
      needed: the fields that are measured; names of the others need not fit.
    """

    names: Mapping[str, tuple[str, ...]]
    by: str = "the training data"
    needed: Sequence[str] = tuple(NAMED)


def open_eval_source(data: DataConfig, config: EvalConfig, known: Known, name: str = "test") -> fields.Source:
    """Opens an evaluation set, with classes and hashtags numbered as the model's outputs.

    Args:
      data: of the training data.
      config: of the set.
      known: what the outputs stand for.
      name: of the set, for messages.

    Raises:
      UserError: as `open_source`; or it has images of other classes, or none of the model's classes or hashtags, or
        its file of classes does not fit.
    """
    dataset = config.data or data.name
    source = open_source(dataclasses.replace(data, name=dataset), config.split)
    if config.classes:
        source = _of_classes(source, config.classes, known, f"evals.{name}.classes")
    have, wanted = names_of(source), dict(known.names)
    if have == wanted:
        return source
    if _imagenet(have["label"], wanted["label"]):
        log.warning(
            "evals.%s: the 1,000 classes of %s and of %s have other names (%s … and %s …); both are taken to be those of "
            "ImageNet in its usual order",
            *(name, dataset, known.by, have["label"][0], wanted["label"][0]),
        )
        wanted["label"] = have["label"]
    for field in NAMED:
        if field in known.needed and wanted[field]:
            _check_names(source, field, wanted[field], known.by, f"evals.{name}", dataset)
    return mixture.Renumbered(source, wanted)


def _check_names(source: fields.Source, field: str, wanted: tuple[str, ...], by: str, key: str, dataset: str) -> None:
    """Refuses what would be measured as another class; says which names do not occur on both sides."""
    kind, own = NAMED[field], fields.names(source, field)
    if own == wanted:
        return
    if not set(wanted) & set(own):
        raise UserError(
            f"{key}.data: {dataset} has none of the {kind} of {by} ({_some(own) or 'it has no names'}; there "
            f"{_some(wanted)}); use another, or match {kind} of other names by {key}.classes"
        )
    there, here = collections.Counter(wanted), set(own)
    if twice := [name for name in own if there[name] > 1]:
        raise UserError(f"{key}.data: '{twice[0]}' is the name of {there[twice[0]]} {kind} of {by}: which is meant?")
    unknown, absent = [name for name in own if name not in there], [name for name in wanted if name not in here]
    if field == "label" and unknown:
        occur = np.unique(fields.labels(source))
        if seen := [own[i] for i in occur if i >= 0 and own[i] not in there]:
            raise UserError(
                f"{key}.data: {dataset} has images of classes that {by} does not have: {_some(seen)}; leave them out, or "
                f"give their names there, by a file of classes in {key}.classes"
            )
    elif unknown:
        log.info("%s: %s %s of %s are not in %s: %s", key, f"{len(unknown):,}", kind, dataset, by, _some(unknown))
    if absent:
        log.info("%s: %s %s of %s are not in %s: %s", key, f"{len(absent):,}", kind, by, dataset, _some(absent))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", …" * (len(names) > 5)


def _imagenet(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether one list is ImageNet's WordNet ids in order, and the other its classes in words, in the same order."""
    ids, words = (one, other) if one and re.fullmatch(r"n\d{8}", one[0]) else (other, one)
    return (
        len(ids) == len(words) == 1000
        and list(ids) == sorted(ids)
        and (ids[0], ids[-1]) == ("n01440764", "n15075141")
        and words[0].lower().startswith("tench")
        and words[-1].lower().startswith("toilet")
    )


def crop(image: bytes | np.ndarray, config: EvalConfig, size: tuple[int, int]) -> np.ndarray:
    """An image as this set shows it: uint8 [*size, 3].

    Raises:
      decode.Unreadable: as `decode.decode`.
    """
    if config.crop == "squeeze":
        return images.squeeze(image, size)
    return images.center_crop(image, size, config.share)


def _of_classes(source: fields.Source, path: str, known: Known, key: str) -> fields.Source:
    """The records of the classes that a file lists, named as it says; `key` names the file in messages."""
    own = fields.names(source, "label")
    mapping = _read_classes(path, key)
    for names, of, which in ((mapping, own, "this set"), (mapping.values(), known.names["label"], known.by)):
        if absent := [name for name in names if name not in of]:
            near = difflib.get_close_matches(absent[0], of, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UserError(f"{key}: {path}: '{absent[0]}' is no class of {which}{hint}")
    counts = np.array([*(name in mapping for name in own), False])  # -1, unknown, takes the last entry
    kept = Subset(source, np.flatnonzero(counts[fields.labels(source)]))
    names = tuple(mapping.get(name, name) for name in own)
    return fields.Wrapper(kept, {"label": fields.Label(names)}, digest(kept.fingerprint, json.dumps(names)))


def _read_classes(path: str, key: str) -> dict[str, str]:
    """Name in the set → name in the training data."""
    try:
        content = json.loads(pathlib.Path(path).expanduser().read_bytes())
    except OSError as error:
        raise UserError(f"{key}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{key}: {path} is no JSON ({error})") from error
    names = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{key}: {path} must hold a list of names, or an object, name in this set → name in the training data"
        )
    return dict(zip(map(text.name, content), map(text.name, names)))
