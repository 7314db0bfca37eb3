"""Weights from a finished stage to the next: every leaf of both sides is accounted for, or the run does not start.

A stage declares a `Handoff`: which source leaves move, which are dropped, which target leaves may stay fresh and how a
moved leaf of another shape is resized. Nothing is matched or skipped without a rule.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mae_pp_jax.core import checkpoint, leaves, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten

# JSON part of the source's checkpoint, with its config → (how its array becomes ours, or None where it moves as it is;
# a note for the report).
Resize = Callable[[Mapping], tuple[Callable[[np.ndarray], np.ndarray] | None, str]]

# (what a config calls a run, the key that says so, for errors) → folder of the run, which may be made at that moment.
Locate = Callable[[str, str], storage.Path]


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
      scope: pattern of the target leaves that this source answers for, where a stage has several sources.
    """

    stages: tuple[str, ...]
    move: tuple[tuple[str, str], ...]
    drop: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    resize: tuple[tuple[str, Resize], ...] = ()
    scope: str = r".*"


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


def plan(rules: Handoff, source: Mapping, target: Mapping, where: str, meta: Mapping) -> Plan:
    """Matches the leaves of a source against a target.

    Args:
      rules: the stage's rules.
      source: path → anything with a `shape`.
      target: path → anything with a `shape`.
      where: name of the source for errors.
      meta: the JSON part of the source's checkpoint (`checkpoint.meta`).

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
        function, note = next((r(meta) for p, r in rules.resize if re.fullmatch(p, path)), (None, ""))
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


def sources(init_from) -> dict[str, Any]:
    """Part → the configured source (with `run` and `step`); {"": …} where a stage has one; empty for random weights.

    Args:
      init_from: a config with `run` and `step`, or a dataclass of several such, one for each part of the model.
    """
    if hasattr(init_from, "run"):
        parts = {"": init_from}
    else:
        parts = {field.name: getattr(init_from, field.name) for field in dataclasses.fields(init_from)}
    return {part: source for part, source in parts.items() if source.run}


def key_of(part: str) -> str:
    """What a part's source is called in messages."""
    return f"config.init_from.{part}" if part else "config.init_from"


def is_same(record: Mapping, source, field: str, locate: Locate = storage.path) -> bool:
    """Whether a configured source is the run of a lineage record, by stage, step and weights, wherever it lies.

    Args:
      record: of the lineage.
      source: with `run` and `step`.
      field: what the source is called in messages.
      locate: see `Locate`.

    Raises:
      UserError: there is no such run.
    """
    run = locate(source.run, f"{field}.run")
    at = checkpoint.find(run, source.step, field)
    if (checkpoint.meta(run, at)["config"]["stage"], at) != (record["stage"], record["step"]):
        return False
    known = record.get("params_sha256")  # older runs noted none
    return not known or known == checkpoint.weights_sha256(run, at, checkpoint.weights(run, at))


def transfer(
    rules: Handoff | Mapping[str, Handoff], init_from, params, locate: Locate = storage.path
) -> tuple[dict, dict[str, dict], str, dict[str, leaves.Leaf]]:
    """Fills freshly initialised parameters with the weights of other runs.

    Args:
      rules: the stage's rules, by part where `init_from` has several.
      init_from: where the weights come from, see `sources`.
      params: nested dict of initialised, sharded parameters of this stage.
      locate: see `Locate`.

    Returns:
      (parameters, part → record of its source for the lineage, report that names every leaf, where each leaf lies that
      came as it is).

    Raises:
      UserError: a source is absent, of a stage these rules do not know, or does not match.
    """
    target, records, accounts, unchanged = flatten(params), {}, [], {}
    reached: set[str] = set()
    for part, source in sources(init_from).items():
        own = rules[part] if part else rules
        scope = {path: leaf for path, leaf in target.items() if re.fullmatch(own.scope, path)}
        if twice := reached & set(scope):
            raise ValueError(f"two parts of the handoff answer for {min(twice)}; give them scopes that do not overlap")
        filled, records[part], account, same = _transfer(own, source, scope, part, locate)
        target |= filled
        unchanged |= same
        reached |= set(scope)
        accounts.append(account)
    if rest := [f"  fresh    {path} {_shape(leaf)}" for path, leaf in target.items() if path not in reached]:
        accounts += ["from no run:", *rest]
    return unflatten(target), records, "\n".join(accounts), unchanged


def _transfer(
    rules: Handoff, source, target: dict, part: str, locate: Locate
) -> tuple[dict, dict, str, dict[str, leaves.Leaf]]:
    """Fills the leaves `target` (by path) from one source; the others as `transfer`.

    The running average (`ema`) is taken where the source kept one, as it is what that run evaluated.
    """
    key = key_of(part)
    run = locate(source.run, f"{key}.run")
    at = checkpoint.find(run, source.step, key)
    meta = checkpoint.meta(run, at)
    stage = meta["config"]["stage"]
    if stage not in rules.stages:
        raise UserError(
            f"{key}.run: {run} is a run of stage '{stage}'; this stage starts from {' or '.join(rules.stages)}"
        )
    source, target = checkpoint.weights(run, at), dict(target)
    item = "ema" if any(leaf.item == "ema" for leaf in source.values()) else "params"
    where = f"{run} (stage {stage}, step {at}, {item})"
    matched = plan(rules, source, target, where, meta)
    account = report(matched, source, target, where)
    wanted = {s: _like(source[s], target[t]) for t, s in {**matched.moved, **matched.resized}.items()}
    arrays = leaves.read(source, wanted)
    for t, s in matched.moved.items():
        target[t] = jnp.asarray(arrays[s], target[t].dtype)
    for t, s in matched.resized.items():
        value = np.asarray(matched.resize[t](np.asarray(arrays[s])), target[t].dtype)
        target[t] = jax.make_array_from_callback(value.shape, target[t].sharding, lambda index, v=value: v[index])
    record = dict(
        run=str(run), stage=stage, step=at, item=item, params_sha256=checkpoint.weights_sha256(run, at, source)
    )
    same = {t: source[s] for t, s in matched.moved.items() if source[s].dtype == target[t].dtype}
    return target, {**record, "lineage": meta["lineage"], "parents": meta.get("parents")}, account, same


def _shape(leaf) -> str:
    return "×".join(map(str, leaf.shape)) or "scalar"


def _like(source, target) -> jax.ShapeDtypeStruct:
    """The source's shape in the target's layout; a leaf to be resized is read whole on every device."""
    same = tuple(source.shape) == tuple(target.shape)
    whole = target.sharding
    if not same and isinstance(whole, jax.sharding.NamedSharding):
        whole = jax.sharding.NamedSharding(whole.mesh, jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct(source.shape, source.dtype, sharding=whole)
