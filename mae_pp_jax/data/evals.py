"""Evaluation sets: any number of datasets to measure on, with names and numbers as in the training data."""

import collections
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from mae_pp_jax.core.config import key
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import class_names, fields, images, label_sets, mixture
from mae_pp_jax.data.class_names import Outputs
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
    resize: str = key(
        "area",
        "how pixels are resized: averages of areas, or Pillow's filters, with which published figures were measured",
        choices=images.RESIZES,
    )
    border: int = key(0, "pixels cut off each side before that; ObjectNet's red frame: 2", low=0)
    classes: str = key(
        "",
        "JSON file of the classes that count, or a packaged one (imagenet_a, …): a list of names, or an object, name in "
        "this set → name or names in the training data; images of others are left out; empty: all, by name",
        by_content=True,
    )
    labels: str = key(
        "",
        "JSON file of the classes that are right for each image (ImageNet-ReaL's real.json), or a field of the set; "
        "images without any are left out; empty: the set's one class",
        by_content=True,
    )
    logits: str = key(
        "all",
        "among which classes the model chooses: all that it has, or those of this set",
        choices=("all", "set"),
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
    whole = open_source(dataclasses.replace(data, name=dataset), config.split)
    source, place, outputs = whole, f"evals.{name}", Outputs(known.names["label"])
    right, targets = None, None  # the classes that are right for each record; those of the file of classes
    if config.classes:
        source, right, targets = _of_classes(source, config.classes, outputs, known.by, f"{place}.classes")
    if config.labels:
        exact = source is whole and "[" not in config.split
        source, right = label_sets.read(source, config.labels, outputs, known.by, f"{place}.labels", exact)
    if right is None:
        source = _by_name(source, known, outputs, place, dataset, renamed=bool(config.classes))
    if right is not None or config.logits == "set":
        if config.logits == "set" and targets is None:
            targets = np.unique(right_answers(source) if right is None else np.concatenate(right))
        allowed = targets[targets >= 0] if config.logits == "set" else None
        answers = None if right is None else label_sets.padded(right)
        source = label_sets.Judged(source, outputs.names, answers, allowed)
    if is_partial(config):
        tell_absent(place, right_answers(source), outputs.names, targets)
    return source


def is_partial(config: EvalConfig) -> bool:
    """Whether a set is known to have only some of the classes; its labels are read as it is opened."""
    return bool(config.classes) or config.logits == "set"


def right_answers(source: fields.Source) -> np.ndarray:
    """The classes that are right for each record of an evaluation set.

    Returns:
      int32 [records], or [records, most] padded with -1 where a record may have several.
    """
    if "answers" not in source.fields:
        return fields.labels(source)
    return np.stack(list(source.column("answers")))


def tell_absent(place: str, right: np.ndarray, names: Sequence[str], among: np.ndarray | None = None) -> None:
    """Says which classes have no image in an evaluation set.

    Args:
      place: names the set.
      right: as `right_answers` gives it.
      names: of all classes.
      among: int [classes], those that should have one; None: all.
    """
    among = np.arange(len(names)) if among is None else among
    if absent := [names[i] for i in np.setdiff1d(among, right)]:
        log.info("%s: %s of %s classes have no image: %s", place, f"{len(absent):,}", f"{len(among):,}", _some(absent))


def _by_name(
    source: fields.Source, known: Known, outputs: Outputs, place: str, dataset: str, renamed: bool
) -> fields.Source:
    """A set with its classes and hashtags numbered as the outputs of the same names."""
    have, wanted = names_of(source), dict(known.names)
    if have == wanted:
        return source
    ids = class_names.imagenet_ids(have["label"])
    if renamed:
        wanted["label"] = outputs.names
    elif outputs.names != wanted["label"] and set(have["label"]) & set(outputs.names):
        wanted["label"] = outputs.names
        _tell_order(place, dataset, known.by, have["label"], known.names["label"])
    elif ids and set(ids) & set(wanted["label"]):
        source = fields.Wrapper(source, {"label": fields.Label(ids)})
        _tell_order(place, dataset, known.by, have["label"], wanted["label"])
    for field in NAMED:
        if field in known.needed and wanted[field]:
            _check_names(source, field, wanted[field], known.by, place, dataset)
    return mixture.Renumbered(source, wanted)


def _tell_order(place: str, dataset: str, by: str, have: Sequence[str], wanted: Sequence[str]) -> None:
    log.warning(
        "%s: the classes of %s and of %s have other names (%s … and %s …); the 1,000 in words are taken to be those of "
        "ImageNet in its usual order",
        *(place, dataset, by, have[0], wanted[0]),
    )


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


def crop(image: bytes | np.ndarray, config: EvalConfig, size: tuple[int, int]) -> np.ndarray:
    """An image as this set shows it: uint8 [*size, 3].

    Raises:
      decode.Unreadable: as `decode.decode`.
    """
    if config.border:
        image = images.without_border(image, config.border)
    if config.crop == "squeeze":
        return images.squeeze(image, size, config.resize)
    return images.center_crop(image, size, config.share, config.resize)


def _of_classes(
    source: fields.Source, paths: str, outputs: Outputs, by: str, key: str
) -> tuple[fields.Source, list[np.ndarray] | None, np.ndarray]:
    """The records of the classes that a file lists; `key` names the file in messages.

    Returns:
      The records, with the classes named as the outputs; the outputs that are right for each record, int32 [n], where a
      class stands for several of them (else None); and the outputs that any class stands for, int32 [classes].
    """
    *renaming, (path, mapping) = class_names.read_maps(paths, key)
    own = fields.names(source, "label")
    for file, names in renaming:
        if not set(names) & set(own):
            raise UserError(f"{key}: {file} names none of the classes of this set ({_some(own) or 'it has none'})")
        own = tuple(str(names.get(name, name)) for name in own)
    absent, others = [name for name in mapping if name not in own], [name for name in own if name not in mapping]
    if absent and others or len(absent) == len(mapping):  # it may be one of the others, by another name
        raise UserError(f"{key}: {path}: '{absent[0]}' is no class of this set{class_names.hint(absent[0], others)}")
    places = {name: outputs.find_all(value, f"{key}: {path}", by) for name, value in mapping.items()}
    counts = np.array([*(name in places for name in own), False])  # -1, unknown, takes the last entry
    labels = fields.labels(source)
    if not counts[labels].any():
        raise UserError(f"{key}: no image of this set is of a class that {path} lists; use another file or split")
    kept = Subset(source, np.flatnonzero(counts[labels]))
    targets = np.unique(np.concatenate([np.array(found, np.int32) for found in places.values()]))
    if all(len(found) == 1 for found in places.values()):
        names = tuple(outputs.names[places[name][0]] if name in places else name for name in own)
        label = {"label": fields.Label(names)}
        return fields.Wrapper(kept, label, digest(kept.fingerprint, json.dumps(names))), None, targets
    right = [np.array(places.get(name, ()), np.int32) for name in own]
    return kept, [right[label] for label in labels[counts[labels]]], targets
