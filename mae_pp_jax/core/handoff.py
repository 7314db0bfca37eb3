"""Weights from a finished stage to the next: every leaf of both sides is accounted for, or the run does not start.

A stage declares a `Handoff`: which source leaves move, which are dropped, which target leaves may stay fresh and how a
moved leaf of another shape is resized. Nothing is matched by accident and nothing is skipped in silence.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core import checkpoint
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten

# Config of the source run → (how its array becomes ours, or None where it moves as it is; a note for the report).
Resize = Callable[[Mapping], tuple[Callable[[np.ndarray], np.ndarray] | None, str]]


@dataclasses.dataclass(frozen=True)
class Handoff:
    """Rules by path; patterns match whole paths, the first match decides.

    Attributes:
      stages: stages whose runs may be the source.
      move: (source pattern, target replacement) as in `re.sub`.
      drop: source patterns that have no place in the target.
      fresh: target patterns that keep their initial values when no source leaf moves there.
      resize: (target pattern, `Resize`) for moved leaves that may need another shape or order of their rows, which the
        shapes alone do not tell.
    """

    stages: tuple[str, ...]
    move: tuple[tuple[str, str], ...]
    drop: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    resize: tuple[tuple[str, Resize], ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to every leaf.

    Attributes:
      moved: target → source.
      resized: target → source.
      dropped: paths of the source.
      fresh: paths of the target.
      resize: target → function for the source's array, of all that are resized.
      notes: target → what a reader of the report should know about it.
    """

    moved: dict[str, str]
    resized: dict[str, str]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]
    resize: dict[str, Callable[[np.ndarray], np.ndarray]] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)


def plan(rules: Handoff, source: Mapping, target: Mapping, where: str, config: Mapping) -> Plan:
    """Matches the leaves of a source against a target.

    Args:
      rules: the stage's rules.
      source: path → anything with a `shape`.
      target: path → anything with a `shape`.
      where: name of the source for errors.
      config: of the source run, as its checkpoint holds it.

    Raises:
      UserError: a source leaf neither moved nor dropped, a target leaf neither reached nor fresh, two sources for one
        target, or a shape that no rule resizes.
    """
    arriving: dict[str, str] = {}
    dropped = []
    for path in source:
        reached = next((re.sub(p, r, path) for p, r in rules.move if re.fullmatch(p, path)), None)
        if reached is not None and reached in target:
            if reached in arriving:
                raise UserError(f"handoff: {where}: both {arriving[reached]} and {path} would become {reached}")
            arriving[reached] = path
        elif any(re.fullmatch(p, path) for p in rules.drop):
            dropped.append(path)
        else:
            raise UserError(
                f"handoff: {where}: source leaf {path} {tuple(source[path].shape)} is neither moved nor dropped; "
                "the model there is not the one this stage expects (check config.model against its config.json)"
            )
    moved, resized, fresh, resize, notes = {}, {}, [], {}, {}
    for path, leaf in target.items():
        if path not in arriving:
            if not any(re.fullmatch(p, path) for p in rules.fresh):
                raise UserError(
                    f"handoff: {where}: nothing arrives at {path} {tuple(leaf.shape)} and it may not stay fresh"
                )
            fresh.append(path)
            continue
        function, note = next((r(config) for p, r in rules.resize if re.fullmatch(p, path)), (None, ""))
        if note:
            notes[path] = note
        if function is not None:
            resized[path], resize[path] = arriving[path], function
        elif tuple(source[arriving[path]].shape) == tuple(leaf.shape):
            moved[path] = arriving[path]
        else:
            raise UserError(
                f"handoff: {where}: {arriving[path]} is {tuple(source[arriving[path]].shape)} there and {path} is "
                f"{tuple(leaf.shape)} here; use the same config.model as that run"
            )
    return Plan(moved, resized, tuple(dropped), tuple(fresh), resize, notes)


def report(plan: Plan, source: Mapping, target: Mapping, where: str) -> str:
    """Text that names every leaf of both sides."""
    lines = [
        f"handoff from {where}: {len(plan.moved)} moved, {len(plan.resized)} resized, {len(plan.dropped)} dropped, "
        f"{len(plan.fresh)} fresh"
    ]
    notes = {path: f" ({note})" for path, note in plan.notes.items()}
    lines += [f"  moved    {s} → {t} {_shape(target[t])}{notes.get(t, '')}" for t, s in plan.moved.items()]
    lines += [
        f"  resized  {s} {_shape(source[s])} → {t} {_shape(target[t])}{notes.get(t, '')}"
        for t, s in plan.resized.items()
    ]
    lines += [f"  dropped  {s} {_shape(source[s])}" for s in plan.dropped]
    lines += [f"  fresh    {t} {_shape(target[t])}" for t in plan.fresh]
    return "\n".join(lines)


def transfer(rules: Handoff, run: pathlib.Path, step: str, params) -> tuple[dict, dict, str]:
    """Fills freshly initialised parameters with the weights of another run.

    The running average (`ema`) is taken where the source kept one, as it is what that run evaluated.

    Args:
      rules: the stage's rules.
      run: folder of the source run.
      step: "last" or a number.
      params: nested dict of initialised, sharded parameters of this stage.

    Returns:
      (parameters, record of the source for the lineage, report that names every leaf).

    Raises:
      UserError: the source is absent, of a stage these rules do not know, or does not match.
    """
    at = checkpoint.find(run, step)
    meta = checkpoint.meta(run, at)
    stage = meta["config"]["stage"]
    if stage not in rules.stages:
        raise UserError(
            f"config.init_from.run: {run} is a run of stage '{stage}'; "
            f"this stage starts from {' or '.join(rules.stages)}"
        )
    items = checkpoint.shapes(run, at)
    item = "ema" if "ema" in items else "params"
    source, target = items[item], flatten(params)
    where = f"{run} (stage {stage}, step {at}, {item})"
    matched = plan(rules, source, target, where, meta["config"])
    account = report(matched, source, target, where)
    wanted = {s: _like(source[s], target[t]) for t, s in {**matched.moved, **matched.resized}.items()}
    arrays = checkpoint.read(run, at, item, wanted)
    for t, s in matched.moved.items():
        target[t] = jnp.asarray(arrays[s], target[t].dtype)
    for t, s in matched.resized.items():
        value = np.asarray(matched.resize[t](np.asarray(arrays[s])), target[t].dtype)
        target[t] = jax.make_array_from_callback(value.shape, target[t].sharding, lambda index, v=value: v[index])
    parent = dict(run=str(run), stage=stage, step=at, item=item, params_sha256=meta.get("params_sha256"))
    return unflatten(target), {**parent, "lineage": meta["lineage"]}, account


def _shape(leaf) -> str:
    return "×".join(map(str, leaf.shape)) or "scalar"


def _like(source, target) -> jax.ShapeDtypeStruct:
    """The source's shape in the target's layout; a leaf to be resized is read whole on every device."""
    same = tuple(source.shape) == tuple(target.shape)
    whole = target.sharding
    if not same and isinstance(whole, jax.sharding.NamedSharding):
        whole = jax.sharding.NamedSharding(whole.mesh, jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(source.shape, source.dtype, sharding=whole)
