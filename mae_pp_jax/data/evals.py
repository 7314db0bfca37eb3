"""Evaluation sets: any number of datasets to measure on, with names and numbers as in the training data."""

import dataclasses
import difflib
import json
import pathlib

import numpy as np

from mae_pp_jax.core.config import key
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import fields, images, mixture, text
from mae_pp_jax.data.source import DataConfig, Subset, digest, open_source


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """One evaluation set."""

    data: str = key("", "dataset to evaluate on, numbered as the training data by name; empty: data.name")
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
    )


def open_eval_source(data: DataConfig, config: EvalConfig, train: fields.Source, name: str = "test") -> fields.Source:
    """Opens an evaluation set, with classes and hashtags numbered as in the training data.

    Args:
      data: of the training data.
      config: of the set.
      train: the training data.
      name: of the set, for messages.

    Raises:
      UserError: as `open_source`; or it has none of the training data's classes or hashtags, or its file of classes
        does not fit.
    """
    dataset = config.data or data.name
    source = open_source(dataclasses.replace(data, name=dataset), config.split)
    if config.classes:
        source = _of_classes(source, config.classes, fields.names(train, "label"), f"evals.{name}.classes")
    wanted = {field: fields.names(train, field) for field in ("label", "hashtags")}
    have = {field: fields.names(source, field) for field in wanted}
    if have == wanted:
        return source
    for field, kind in (("label", "classes"), ("hashtags", "hashtags")):
        if wanted[field] and not set(wanted[field]) & set(have[field]):
            raise UserError(f"evals.{name}.data: {dataset} has none of the {kind} of the training data; use another")
    return mixture.Renumbered(source, wanted)


def crop(image: bytes | np.ndarray, config: EvalConfig, size: tuple[int, int]) -> np.ndarray:
    """An image as this set shows it: uint8 [*size, 3].

    Raises:
      decode.Unreadable: as `decode.decode`.
    """
    if config.crop == "squeeze":
        return images.squeeze(image, size)
    return images.center_crop(image, size, config.share)


def _of_classes(source: fields.Source, path: str, known: tuple[str, ...], key: str) -> fields.Source:
    """The records of the classes that a file lists, named as it says; `key` names the file in messages."""
    own = fields.names(source, "label")
    mapping = _read_classes(path, key)
    for names, of, which in ((mapping, own, "this set"), (mapping.values(), known, "the training data")):
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
