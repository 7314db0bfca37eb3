"""Finds the weights of an image model among all that a training file holds, and accounts for the rest.

Training scripts wrap models (`module.`, `_orig_mod.`, `backbone.`), keep them under names of their own (`model`,
`state_dict`, `ema`) and beside optimizer state, random numbers and counters. None of these names is looked up: a set of
weights is known by the first key of a format's table, and what stands before that key is its prefix.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop import tables
from mae_pp_jax.interop.tensors import Tensor, refuse

# What DataParallel, torch.compile, FSDP and activation checkpointing put anywhere into keys, for modules they wrap.
_WRAPPERS = re.compile(
    r"(?<![^./])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)[./]"
)
_ANCHORS = tuple({format.rows[0].key for format in tables.FORMATS})
_AVERAGE = re.compile(r"ema|swa|averaged?|avg|shadow")
_OPTIMIZER = re.compile(r".*optim.*|opt|opt_state|mu|nu|exp_avg.*|momentum_buffer")  # has moments of the weights' names
# Names of what training keeps beside weights → what it is; the first that matches.
_BESIDE = (
    (r"(.*[_.])?(rng|random)([_.].*)?", "state of random numbers"),
    (r".*sched.*", "learning-rate schedule"),
    (r"(.*_)?(scaler|amp)", "loss scaling"),
    (r"(.*_)?(args|arguments|cfg|config|settings|hparams|hyper_parameters|hparams_name)", "settings"),
    (
        r"(.*_)?(epochs?|steps?|iters?|iterations?|loss|loss(es)?_.*|accuracy|acc\d?|best|best_.*|metrics?|n_averaged|"
        r"num_updates|decay|callbacks|loops|version|.*-version)",
        "training progress",
    ),
)
_DEPTH = 50  # of dicts and lists within each other; deeper ones are not looked into


@dataclasses.dataclass(frozen=True)
class Weights:
    """One set of weights in a file.

    Attributes:
      under: keys of the dicts that it stands in, from the outside.
      prefix: what its keys begin with there.
      tensors: key, without prefix and wrappers → tensor.
      keys: key, without prefix and wrappers → key in the file.
      averaged: whether it is a running average of weights.
      other: what else the file holds, name → what that is.
    """

    under: tuple[str, ...]
    prefix: str
    tensors: Mapping[str, Tensor]
    keys: Mapping[str, str]
    averaged: bool = False
    other: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """What `--item` calls it; empty where nothing stands around it."""
        return ".".join([*self.under, self.prefix.rstrip("./")]).strip(".")


def find(path: storage.Path, tree, item: str) -> Weights:
    """The weights in the content of a file.

    Args:
      path: the file, for messages.
      tree: dicts, lists, numbers, text and `Tensor`s.
      item: which of several: "model" (as trained), "ema" (their running average), a `Weights.name`, or "auto": the
        average where there is one beside them, as it is what such trainings evaluate.

    Raises:
      UserError: there are none, or no such, or several that could be meant.
    """
    if not isinstance(tree, Mapping):
        raise refuse(path, "holds no dict of tensors; save it with torch.save(model.state_dict(), FILE)")
    leaves = list(_walk(tree, {}))
    dicts: dict[tuple, dict[str, Tensor]] = {}
    for where, value in leaves:
        if isinstance(value, Tensor):
            dicts.setdefault(where[:-1], {})[where[-1]] = value
    if not dicts:
        raise refuse(path, f"holds no tensors (it has {', '.join(map(str, list(tree)[:5])) or 'nothing'})")
    found = [weights for under, tensors in dicts.items() for weights in _split(path, under, tensors)]
    if found:
        chosen = _choose(path, found, item)
    else:  # of no format: its keys are for the error that says so
        under = max(dicts, key=lambda under: len(dicts[under]))
        chosen = Weights(under, "", dicts[under], {key: key for key in dicts[under]})
    return _without_counters(chosen, _account(leaves, found, chosen))


def _walk(node, seen: dict[int, str], where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Everything that is no dict or list, and empty ones, with the keys that lead there.

    A dict or list that several keys share is looked into once: a small file may hold it billions of times.
    """
    parts = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list | tuple) else ()
    if not parts:
        yield where, node
    elif id(node) in seen or len(where) >= _DEPTH:
        yield where, _Unread(f"the same as {seen[id(node)]}" if id(node) in seen else "too deep to be looked into")
    else:
        seen[id(node)] = ".".join(where)
        for key, value in parts:
            yield from _walk(value, seen, (*where, str(key)))


@dataclasses.dataclass(frozen=True)
class _Unread:
    """Stands for a dict or list that was not looked into."""

    why: str


def _split(path: storage.Path, under: tuple[str, ...], tensors: Mapping[str, Tensor]) -> list[Weights]:
    """The sets of weights in one dict: one for each prefix before a key that begins a format's table."""
    bare: dict[str, str] = {}  # key without what wrappers put into it → key
    for key in tensors:
        name = _WRAPPERS.sub("", key)
        if name in bare:
            raise refuse(path, f"both {bare[name]} and {key} would be {name}; save one of the two alone")
        bare[name] = key
    prefixes = set()
    for name in bare:
        ends = [name.removesuffix(anchor) for anchor in _ANCHORS if name.endswith(anchor)]
        ends = [end for end in ends if (not end or end[-1] in "./") and not _is_optimizer((*under, end))]
        if ends:
            prefixes.add(min(ends, key=len))
    sets: dict[str, dict[str, str]] = {prefix: {} for prefix in sorted(prefixes)}
    for name, key in bare.items():
        if own := [prefix for prefix in prefixes if name.startswith(prefix)]:
            prefix = max(own, key=len)
            sets[prefix][name.removeprefix(prefix)] = key
    counted = [name.removesuffix("n_averaged") for name in bare if name.endswith("n_averaged")]  # torch.optim.swa_utils
    return [
        Weights(
            under,
            prefix,
            {key: tensors[name] for key, name in own.items()},
            own,
            averaged=_is_average((*under, prefix)) or any(prefix.startswith(start) for start in counted),
        )
        for prefix, own in sets.items()
    ]


def _is_average(names: tuple[str, ...]) -> bool:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", " ".join(names))
    return any(_AVERAGE.fullmatch(word.lower()) for word in words)


def _is_optimizer(names: tuple[str, ...]) -> bool:
    return any(_OPTIMIZER.fullmatch(word) for word in re.split(r"[./]", ".".join(names).lower()))


def _choose(path: storage.Path, found: list[Weights], item: str) -> Weights:
    averaged = [weights for weights in found if weights.averaged]
    raw = [weights for weights in found if not weights.averaged]
    if item == "auto":
        wanted = found if len(found) == 1 else averaged if len(averaged) == len(raw) == 1 else []
    else:
        named = [weights for weights in found if weights.name == item]
        wanted = named or {"ema": averaged, "model": raw}.get(item, [])
    if len(wanted) == 1:
        return wanted[0]
    shown = ", ".join(
        f"{weights.name or 'its own keys'} ({len(weights.tensors)} tensors{', averaged' * weights.averaged})"
        for weights in found
    )
    if item == "auto" or len(wanted) > 1:
        raise UserError(f"--item: {path} holds several sets of weights: {shown}; give --item= the name of one")
    raise UserError(f"--item: {path} holds no weights {item!r}; it holds {shown}")


def _account(leaves: list, found: list[Weights], chosen: Weights) -> dict[str, str]:
    """What stands around the chosen weights: name → what it is. Whole sets and what is outside of the dict in sums."""
    sets = {(*weights.under, key): weights for weights in (*found, chosen) for key in weights.keys.values()}
    sums: dict[str, list[Tensor]] = {}
    about: dict[str, str] = {}
    for where, value in leaves:
        weights = sets.get(where)
        if weights is chosen:
            continue
        if weights:
            name = weights.name or "without prefix"
            what = "a running average of weights" if weights.averaged else "weights as trained"
            about[name] = f"{what} (--item={weights.name or 'model'})"
        else:
            common = next((i for i, (a, b) in enumerate(zip(where, chosen.under)) if a != b), len(chosen.under))
            name = ".".join(where[: common + 1])
            if isinstance(value, _Unread):
                about[name] = value.why
        sums.setdefault(name, []).extend([value] if isinstance(value, Tensor) else [])
    return {name: about_tensors(tensors, about.get(name) or _word(name)) for name, tensors in sums.items()}


def _without_counters(chosen: Weights, other: dict[str, str]) -> Weights:
    """Random numbers, counters and losses among the weights, under names of their own, are left like those outside."""
    beside = {key: word for key in chosen.tensors if "." not in key and "/" not in key and (word := _word(key))}
    kept = {key: tensor for key, tensor in chosen.tensors.items() if key not in beside}
    left = {key: about_tensors([chosen.tensors[key]], word) for key, word in beside.items()}
    return dataclasses.replace(chosen, tensors=kept, other={**left, **other}) if kept else chosen


def _word(name: str) -> str:
    """What training keeps under this name, or nothing."""
    if _is_optimizer((name,)):
        return "optimizer state"
    last = name.rpartition(".")[2].lower()
    return next((word for pattern, word in _BESIDE if re.fullmatch(pattern, last)), "")


def about_tensors(tensors: list[Tensor], word: str) -> str:
    """How the report describes what is left."""
    if not tensors:
        return word or "no tensors"
    number = f"{len(tensors)} tensor{'s' * (len(tensors) > 1)}, {sum(tensor.nbytes for tensor in tensors):,} bytes"
    return f"{number}, {word or 'outside of the image model'}"
