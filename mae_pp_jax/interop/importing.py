"""A weight file becomes the folder of a run, which other stages start from and `evaluate` and `embed` read."""

import collections
import contextlib
import dataclasses
from collections.abc import Mapping

import numpy as np
import tqdm

from mae_pp_jax.core import console, run_folder, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop import matching, stream
from mae_pp_jax.interop.files import WeightFile
from mae_pp_jax.interop.matching import Match, Place
from mae_pp_jax.interop.tensors import refuse
from mae_pp_jax.models import positions

WHY = {  # a group of rows without a place here → why
    "text": "of the text tower, which --tower=text reads into a run of its own",
    "image": "of the image tower and its temperature, which --tower=image reads into a run of its own",
    "token_types": "its first row is added to every position",
    "position_ids": "counts 0, 1, 2, …",
    "task": "of the task that the text encoder was trained on",
    "pooler": "transformers' pooler, which no task of ours uses",
    "mask_token": "unused without a decoder",
}
TABLES = ("encoder/pos_embed", "decoder/pos_embed")


@dataclasses.dataclass(frozen=True)
class Import:
    """What becomes of every tensor of a file.

    Attributes:
      file: the file.
      match: what it was recognised as.
      places: key → where it goes.
      shapes: path → shape of our parameters.
      resize: whose way of resizing positions, where their grid is another one (`positions.METHODS`).
      classes: names of the outputs of the head, in order; empty: not known.
      named_by: what says so.
    """

    file: WeightFile
    match: Match
    places: Mapping[str, Place]
    shapes: Mapping[str, tuple[int, ...]]
    resize: str
    classes: tuple[str, ...] = ()
    named_by: str = "config.json"

    def report(self) -> str:
        """Text that names every key of the weights, and whatever else the file holds."""
        match, tensors = self.match, self.file.tensors
        item = f" of {self.file.item}" if self.file.item else ""
        average = ", a running average" if self.file.averaged else ""
        lines = [
            f"{self.file.path}: format {match.format.name}, {len(tensors)} tensors{item}{average}, "
            f"{sum(t.nbytes for t in tensors.values()):,} bytes: {len(self.places)} moved, {len(match.left)} left"
        ]
        for key, place in self.places.items():
            index = ", ".join(
                ":" if i == slice(None) else "1:" if isinstance(i, slice) else str(i) for i in place.index
            )
            where = f"{place.path}[{index}]" if place.index else place.path
            resized = " resized" if self._resized(key) else ""
            lines.append(f"  {key} {_shape(tensors[key].shape)} → {where} {_shape(place.shape)}{resized}")
        lines += [
            f"  {key} {_shape(tensors[key].shape)} left: {WHY.get(group, 'not part of the encoder')}"
            for key, group in match.left.items()
        ]
        lines += [f"  {name} left: {what}" for name, what in self.file.left.items()]
        if self.classes:
            lines.append(
                f"  classes by {self.named_by}: {', '.join(self.classes[:5])}{', …' * (len(self.classes) > 5)}"
            )
        elif "head" in match.groups:
            lines.append(f"  classes: {match.sizes['C']:,}, whose names the file does not say")
        return "\n".join(lines)

    def _resized(self, key: str) -> bool:
        place = self.places[key]
        return place.path in TABLES and not matching.fits(place, self.file.tensors[key].shape)

    def values(self, key: str) -> np.ndarray:
        """Reads one tensor and brings it into the shape of its place, as float32."""
        place, tensor = self.places[key], self.file.tensors[key]
        values = tensor.read().astype(np.float32)
        if (plus := self.match.rows[key][0].plus) in self.file.tensors:
            values += self.file.tensors[plus].read()[0].astype(np.float32)
        if self._resized(key):
            table = values.reshape(-1, place.shape[-1])
            side = int(place.shape[0] ** 0.5)
            return positions.resize(table, (side, side), place.shape[0] > side * side, method=self.resize)
        return place.take(values)

    def parameters(self, wrote) -> dict[str, stream.Pieces]:
        """Path → pieces, each read when it is written; `wrote` is called with the bytes of each in the file."""
        keys: dict[str, list[str]] = collections.defaultdict(list)
        for key, place in self.places.items():
            keys[place.path].append(key)

        def parts(path: str):
            for key in keys[path]:
                yield self.places[key].index, self.values(key)
                wrote(self.file.tensors[key].nbytes)

        def piece(path: str) -> tuple[int, ...]:
            index = self.places[keys[path][0]].index
            shape = self.shapes[path]
            return tuple(1 if axis < len(index) and isinstance(index[axis], int) else n for axis, n in enumerate(shape))

        return {p: stream.Pieces(self.shapes[p], piece(p), lambda p=p: parts(p)) for p in keys}


def plan(
    file: WeightFile,
    match: Match,
    shapes: Mapping[str, tuple[int, ...]],
    resize: str,
    classes: tuple[str, ...] = (),
    named_by: str = "config.json",
) -> Import:
    """Finds the place of every tensor and checks that together they fill every parameter.

    Args:
      file: the file.
      match: what it was recognised as.
      shapes: path → shape of the parameters of the run that it becomes.
      resize: whose way of resizing positions.
      classes: names of the head's outputs, as far as they are known.
      named_by: what says so.

    Raises:
      UserError: a tensor does not fit, or a parameter is not filled.
    """
    places, filled = {}, collections.Counter()
    for key, (row, i) in match.rows.items():
        if row.path not in shapes:
            raise refuse(file.path, f"{key} has no place in a run of this kind")
        place = matching.place(row, i, shapes[row.path])
        if not matching.fits(place, file.tensors[key].shape) and row.path not in TABLES:
            raise refuse(
                file.path, f"{key} {_shape(file.tensors[key].shape)} does not fit {row.path} {_shape(place.shape)}"
            )
        plus = file.tensors.get(row.plus)
        if plus is not None and (len(plus.shape) != 2 or not plus.shape[0] or plus.shape[1] != place.shape[-1]):
            raise refuse(file.path, f"{row.plus} {_shape(plus.shape)} does not fit {row.path} {_shape(place.shape)}")
        places[key] = place
        filled[row.path] += int(np.prod(place.shape)) + (row.skip and row.skip * place.shape[-1])
    for path, shape in shapes.items():
        if filled[path] != int(np.prod(shape)):
            raise refuse(
                file.path,
                f"fills {filled[path]:,} of the {int(np.prod(shape)):,} numbers of {path}; get the whole file",
            )
    return Import(file, match, places, shapes, resize, classes, named_by)


def write_run(to: storage.Path, todo: Import, config: dict, source: dict) -> dict:
    """Writes the run's folder: `config.json`, `checkpoints/0` and `result.json`. All of it appears at once, or nothing.

    Args:
      to: the folder; must not exist or be empty.
      todo: what becomes of every tensor.
      config: the run's config as JSON.
      source: where the file came from, for the lineage.

    Returns:
      The content of `result.json`.

    Raises:
      UserError: the folder is taken, or the disk is full.
    """
    meta = _meta(todo, source)
    with bar("converting", sum(todo.file.tensors[key].nbytes for key in todo.places)) as progress:
        return write_folder(to, todo.parameters(progress.update), config, meta, todo.report() + "\n")


def write_folder(
    to: storage.Path, parameters: Mapping[str, stream.Pieces], config: dict, meta: dict, said: str
) -> dict:
    """Writes a run that was not trained: `config.json`, `log.txt`, `checkpoints/0`, `result.json`; all at once, or nothing.

    Args:
      to: the folder; must not exist or be empty.
      parameters: path → pieces.
      config: the run's config as JSON.
      meta: what the checkpoint says of them besides, at least `lineage` and `revision`.
      said: content of `log.txt`.

    Returns:
      The content of `result.json`.

    Raises:
      UserError: the folder is taken, or the disk is full.
    """
    check_target(to)
    count = sum(int(np.prod(pieces.shape)) for pieces in parameters.values())
    half = to.with_name(f".{to.name}.converting")
    storage.remove(half)  # of a conversion that was killed
    result = dict(stage=config["stage"], step=0, examples_seen=0, metrics={}, parameters=count)
    result |= {name: meta[name] for name in ("lineage", "parents", "revision") if name in meta}
    try:
        with storage.writing(to, "--to"):
            storage.make_folder(half)
            free = storage.free_space(half)
            if free < 4 * count:
                raise UserError(f"--to: no space left at {to}: {4 * count:,} bytes are needed, {free:,} are free")
            stream.write_checkpoint(half / "checkpoints" / "0", parameters, {**meta, "config": config})
            storage.write_json(half / "config.json", config)
            storage.write_whole(half / "log.txt", said)
            storage.write_json(half / "result.json", result)
            storage.move(half, to)
    except BaseException:
        storage.remove(half)
        raise
    return result


def check_target(to: storage.Path) -> None:
    """Raises `UserError` unless a new run can be written there."""
    if storage.exists(to) and (storage.is_file(to) or storage.names(to)):
        raise UserError(f"--to: {to} exists already; give a new folder")
    storage.check_writable(to, "--to", folder=True)


def _meta(todo: Import, source: dict) -> dict:
    """What the checkpoint of an imported run says of its weights."""
    file = todo.file
    with bar("reading for SHA-256", sum(storage.size(part) for part in file.parts)) as progress:
        digest = file.sha256(progress.update)
    dtypes = {str(file.tensors[key].dtype) for key in todo.places}
    lineage = dict(
        file=file.path.name,
        format=todo.match.format.name,
        item=file.item,
        sha256=digest,
        dtype=dtypes.pop() if len(dtypes) == 1 else "mixed",
        resize=todo.resize,
        **source,
    )
    return dict(
        dataset={},
        identity={"label": list(todo.classes)} if todo.classes else {},
        lineage=[lineage],
        revision=run_folder.code_revision(),
        wall_seconds=0.0,
        step=0,
    )


@contextlib.contextmanager
def bar(label: str, total: int):
    """A progress bar in bytes with time left, shown on a terminal."""
    with tqdm.tqdm(
        total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1024, disable=not console.on_terminal()
    ) as shown:
        yield shown


def _shape(shape) -> str:
    return "×".join(map(str, shape)) or "scalar"
