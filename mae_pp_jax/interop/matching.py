"""Recognises a format by its keys and shapes, and says where each tensor goes: no tensor is skipped."""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.storage import Path
from mae_pp_jax.interop import tables
from mae_pp_jax.interop.tables import Format, Row
from mae_pp_jax.interop.tensors import Tensor, refuse

STACKS = ("encoder/blocks", "decoder/blocks", "text/blocks")


@dataclasses.dataclass(frozen=True)
class Match:
    """A file understood.

    Attributes:
      format: its table.
      sizes: name of a size (see `tables`) → number.
      depths: stack of blocks → number of blocks.
      groups: the groups of rows that are present.
      rows: key → its row and the number of its block, for keys that have a place here.
      left: keys that have none → the group of their row.
    """

    format: Format
    sizes: Mapping[str, int]
    depths: Mapping[str, int]
    groups: frozenset[str]
    rows: Mapping[str, tuple[Row, int | None]]
    left: Mapping[str, str]


def match(
    path: Path, tensors: Mapping[str, Tensor], name: str, *, wrapped: bool, encoder_only: bool, tower: str = "auto"
) -> Match:
    """Finds the format of a state dict and checks every key and shape against its table.

    Args:
      path: the file, for errors.
      tensors: key → tensor.
      name: a format, or "auto".
      wrapped: whether the state dict stood under "model", as facebookresearch/mae keeps it.
      encoder_only: leave head and decoder behind.
      tower: which of the towers of `tables.TOWERS`; "auto": the image tower where there are both.

    Raises:
      UserError: no format has such keys; or a key is missing, unknown or of another shape.
    """
    if name not in ("auto", *tables.NAMES):
        near = difflib.get_close_matches(name, tables.NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--format: {name!r} is not one of auto, {', '.join(tables.NAMES)}{hint}")
    chosen, rows = _choose(path, tensors, name, wrapped, tower)
    unknown = [key for key in tensors if key not in rows]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise refuse(
            path,
            f"key {unknown[0]} {_shape(tensors[unknown[0]].shape)}{more} is unknown to format {chosen.name}: it is of "
            "another architecture, or remove it from the file",
        )
    behind = {"head", "decoder"} if encoder_only else set()
    groups = frozenset({row.group for row, _ in rows.values()} - behind)
    placed = {key: found for key, found in rows.items() if found[0].path and found[0].group in groups}
    depths = {stack: _depth(path, placed, stack) for stack in STACKS}
    for key, row, _ in expected(chosen, groups, depths):
        if key not in tensors and "*" not in key:
            raise refuse(path, f"key {key} is missing for format {chosen.name}; get the whole file")
        if row.path and not np.issubdtype(tensors[key].dtype, np.floating) and str(tensors[key].dtype) != "bfloat16":
            raise refuse(path, f"{key} holds {tensors[key].dtype} instead of floating-point numbers")
    left = {key: row.group for key, (row, _) in rows.items() if key not in placed}
    return Match(chosen, _sizes(path, chosen, placed, tensors), depths, groups, placed, left)


def expected(
    format: Format, groups: frozenset[str], depths: Mapping[str, int]
) -> Iterator[tuple[str, Row, int | None]]:
    """Every (key, row, number of its block) of a format with these groups of rows and these numbers of blocks."""
    for row in format.rows:
        if row.group not in groups and row.group != "":
            continue
        stack = next((s for s in STACKS if row.path.startswith(s + "/")), None)
        for i in [None] if stack is None else range(depths[stack]):
            yield row.key.replace("{i}", str(i)), row, i


def _choose(path, tensors: Mapping[str, Tensor], name: str, wrapped: bool, tower: str):
    """The format that knows the most keys of those whose first key is there, and its row for each key it knows."""
    best: tuple[int, bool, Format | None, dict] = (-1, False, None, {})
    for candidate in tables.FORMATS:
        wanted = name in ("auto", candidate.name) and tower in ("auto", candidate.tower)
        if wanted and candidate.rows[0].key in tensors:
            rows = _rows(candidate, tensors)
            usual = wrapped == (candidate.name == "mae")  # MAE's and timm's files differ in nothing else
            if (len(rows), usual) > best[:2]:
                best = (len(rows), usual, candidate, rows)
    if best[2] is None:
        shown = ", ".join(f"{key} {_shape(tensor.shape)}" for key, tensor in list(tensors.items())[:3])
        wanted = f"is not of format {name}" if name != "auto" else "is of no known format"
        wanted += f" with a tower for {tower}" if tower != "auto" else ""
        known = f"; known: {', '.join(tables.NAMES)}" if name == "auto" else "; try --format=auto"
        raise refuse(path, f"{wanted} (its keys begin {shown}){known}")
    return best[2], best[3]


def _rows(format: Format, keys) -> dict[str, tuple[Row, int | None]]:
    plain, patterns = {}, []
    for row in format.rows:
        if "{i}" in row.key or "*" in row.key:
            pattern = re.escape(row.key).replace(re.escape("{i}"), r"(0|[1-9]\d*)").replace(re.escape("*"), ".*")
            patterns.append((re.compile(pattern), row))
        else:
            plain[row.key] = row
    found = {}
    for key in keys:
        if key in plain:
            found[key] = (plain[key], None)
            continue
        for pattern, row in patterns:
            if hit := pattern.fullmatch(key):
                found[key] = (row, int(hit[1]) if pattern.groups else None)
                break
    return found


def _depth(path, rows: Mapping[str, tuple[Row, int | None]], stack: str) -> int:
    numbers = {i for row, i in rows.values() if row.path.startswith(stack + "/")}
    for i in range(len(numbers)):
        if i not in numbers:
            key = next(row.key for row, _ in rows.values() if row.path.startswith(stack + "/"))
            raise refuse(
                path, f"key {key.replace('{i}', str(i))} is missing: there is no block {i}; get the whole file"
            )
    return len(numbers)


def _sizes(path, format: Format, rows: Mapping[str, tuple[Row, int | None]], tensors) -> dict[str, int]:
    """The sizes that the shapes imply; the first key that contradicts those before it is blamed."""
    order = {id(row): number for number, row in enumerate(format.rows)}
    sizes: dict[str, int] = {}
    source: dict[str, str] = {}
    for key, (row, _) in sorted(rows.items(), key=lambda item: (order[id(item[1][0])], item[1][1] or 0)):
        shape, names = tensors[key].shape, row.shape.split()
        wanted = []
        for axis, name in enumerate(names):
            factor, symbol = re.fullmatch(r"(\d*)([A-Za-z]?)", name).groups()
            if symbol and symbol not in sizes and len(shape) == len(names) and shape[axis] % int(factor or 1) == 0:
                sizes[symbol], source[symbol] = shape[axis] // int(factor or 1), key
            wanted.append(int(factor or 1) * sizes.get(symbol, 1))
        if tuple(shape) != tuple(wanted) or 0 in shape:
            because = next((f" (as {source[n[-1]]} says)" for n in names if source.get(n[-1], key) != key), "")
            raise refuse(path, f"{key} is {_shape(shape)} instead of {_shape(wanted)}{because}")
    return sizes


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one tensor of a file stands in one of our parameters.

    Attributes:
      path: our parameter.
      index: of the part of the parameter that the tensor fills.
      order: permutation of the tensor's axes before the reshape.
      shape: of that part.
    """

    path: str
    index: tuple
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def take(self, values: np.ndarray) -> np.ndarray:
        """The file's values as ours."""
        return values.transpose(self.order or range(values.ndim)).reshape(self.shape)

    def give(self, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Our values [*self.shape] as the file's, of `shape`; the inverse of `take`."""
        order = self.order or tuple(range(len(shape)))
        moved = values.reshape([shape[axis] for axis in order])
        return np.ascontiguousarray(moved.transpose(np.argsort(order)))


def place(row: Row, i: int | None, shape: tuple[int, ...]) -> Place:
    """The place of a row's tensor, for block `i`, in our parameter of this shape."""
    index: list = [] if i is None else [i]
    rest = list(shape[len(index) :])
    if row.part is not None:  # our axes end in (3, heads, width of a head)
        axis = len(rest) - 3
        index += [slice(None)] * axis + [row.part]
        del rest[axis]
    if row.skip:
        index, rest[0] = [slice(row.skip, None)], rest[0] - row.skip
    return Place(row.path, tuple(index), row.order, tuple(rest))


def shape_of(row: Row, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a row's tensor."""
    pairs = [re.fullmatch(r"(\d*)([A-Za-z]?)", name).groups() for name in row.shape.split()]
    return tuple(int(factor or 1) * (sizes[symbol] if symbol else 1) for factor, symbol in pairs)


def _shape(shape) -> str:
    return "×".join(map(str, shape)) or "a scalar"


def fits(place: Place, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape has as many numbers as its place."""
    return math.prod(place.shape) == math.prod(shape)
