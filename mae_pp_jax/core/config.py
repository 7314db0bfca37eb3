"""Configs: an `ml_collections.ConfigDict` from a file becomes one frozen dataclass, with every key declared once.

A key is a dataclass field made by `key(default, doc, …)`: its default, type, permitted values and one-line
documentation stand in one place. `resolve` lays a config file and `--config.x.y=value` overrides over the defaults;
an unknown key, a wrong type or a value out of range is a `UserError` that names the key and the nearest known one.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import json
import math
import os
import pathlib
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from mae_pp_jax.core.errors import UserError

REQUIRED = object()  # the default of a key that a config must set


def key(default: Any = REQUIRED, doc: str = "", *, choices=None, low=None, high=None, restart=False, by_content=False):
    """Declares one config key.

    Args:
      default: the one default of the key; `REQUIRED` when a config must set it.
      doc: one line of documentation, shown by `--help`.
      choices: permitted values, if they are few.
      low: smallest permitted number.
      high: largest permitted number.
      restart: whether a resumed run may use another value than the run was started with (mesh, logging, profiling);
        any other difference would make the resumed run another experiment and is refused.
      by_content: whether the value names something that is known by its content, such as a dataset or a run, so that a
        resumed run may name it otherwise; the content is compared instead.
    """
    metadata = dict(doc=doc, choices=choices, low=low, high=high, restart=restart, by_content=by_content)
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata, kw_only=True)
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


def section(cls: type, doc: str = "", *, restart: bool = False, **defaults):
    """Declares a nested group of keys; `defaults` replace the defaults of `cls` for this use of it."""
    return dataclasses.field(
        default_factory=lambda: cls(**defaults),
        metadata=dict(doc=doc, restart=restart, defaults=defaults),
        kw_only=True,
    )


def named(cls: type, doc: str = "", *, names: tuple[str, ...], restart: bool = False):
    """Declares groups of keys under names that a config chooses, for a field of type `dict[str, cls]`.

    Args:
      cls: the dataclass of one group.
      doc: one line of documentation.
      names: the groups that there are, with their defaults, unless a config states others.
      restart: as for `key`.
    """
    return dataclasses.field(
        default_factory=lambda: {name: cls() for name in names}, metadata=dict(doc=doc, restart=restart), kw_only=True
    )


def load_file(spec: str) -> dict:
    """Runs `get_config(**arguments)` of a config file and returns its keys as a plain nested dict.

    Args:
      spec: `path/to/file.py` or `path/to/file.py:size=L/16,flag`. Arguments are keyword arguments of the file's
        `get_config`, converted to the types of their defaults; a bare name means True. The file may import others of
        its folder and of the folder above, relatively.

    Raises:
      UserError: no such file, an error in it, or an argument that its `get_config` does not take.
    """
    name, _, arguments = (spec, "", "") if os.path.isfile(spec) else spec.partition(".py:")
    path = pathlib.Path(name + ".py" if arguments and not name.endswith(".py") else name)
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(p) for p in path.parent.glob("*.py")], n=1, cutoff=0.3)
        raise UserError(f"--config: no config file {path}" + (f"; did you mean {near[0]}?" if near else ""))
    with _package(path.resolve()):
        return _run(path, arguments)


_PACKAGE = "config_tree"


@contextlib.contextmanager
def _package(path: pathlib.Path) -> Iterator[None]:
    """Makes a file's folder, and the folder above it, a package while the file is loaded.

    So recipes share data by relative imports such as `from ..imagenet import DATA`. What they import is read anew for
    each file and forgotten afterwards: two trees with equal names do not mix.
    """
    importlib.invalidate_caches()
    try:
        for name, folder in ((_PACKAGE, path.parent.parent), (f"{_PACKAGE}.folder", path.parent)):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(folder)]
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
            del sys.modules[name]


def _run(path: pathlib.Path, arguments: str) -> dict:
    """The keys that `get_config` of a file gives for textual arguments."""
    try:
        loader = importlib.util.spec_from_file_location(f"{_PACKAGE}.folder.{path.stem.replace('.', '_')}", path)
        module = importlib.util.module_from_spec(loader)
        loader.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises becomes one line
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith(f"{_PACKAGE}."):
            above, name = path.resolve().parent, error.name.removeprefix(f"{_PACKAGE}.").removeprefix("folder.")
            above = above if error.name.startswith(f"{_PACKAGE}.folder.") else above.parent
            told = f"it shares {name}.py of the folder {above}, which is not there; put it there"
        raise UserError(f"--config: {path} cannot be loaded: {told}") from error
    if (get_config := getattr(module, "get_config", None)) is None:
        raise UserError(f"--config: {path} is not a recipe, as it has no function get_config; give one that has")
    known = {p.name: p.default for p in inspect.signature(get_config).parameters.values()}
    kwargs = {}
    for part in _split(arguments):
        arg, has_value, text = part.partition("=")
        if arg not in known:
            raise UserError(f"--config: {path} takes no argument '{arg}'{_nearest(arg, known)}")
        kwargs[arg] = _convert(text if has_value else "true", type(known[arg]), f"argument {arg} of {path}", {})
    try:
        config = get_config(**kwargs)
    except ValueError as error:
        raise UserError(f"--config: {path}: {error}") from error
    return _plain(config)


def _split(arguments: str) -> Iterator[str]:
    """The parts of `name=value,…`; a value that is an existing path may hold commas itself."""
    parts = arguments.split(",")
    while parts:
        longer = ((end, ",".join(parts[:end]).partition("=")[2]) for end in range(len(parts), 1, -1))
        found = (end for end, value in longer if value and os.path.exists(os.path.expanduser(value)))
        end = next(found, 1) if "=" in parts[0] else 1
        if part := ",".join(parts[:end]):
            yield part
        del parts[:end]


def resolve(schema: type, mapping: Mapping, overrides: Mapping[str, str] | None = None):
    """Builds a frozen `schema` from its defaults, `mapping` and textual overrides, in that order.

    Args:
      schema: a frozen dataclass whose fields were made by `key` and `section`.
      mapping: nested dict of values, as a config file gives it.
      overrides: dotted key → text, as `--config.a.b=text` gives it.

    Raises:
      UserError: unknown key, wrong type, value not permitted, required key absent.
    """
    return _build(schema, override(schema, mapping, overrides), "config", {})


def override(schema: type, mapping: Mapping, overrides: Mapping[str, str] | None) -> dict:
    """The keys that are stated, by `mapping` and textual overrides over it, as a nested dict; see `resolve`."""
    mapping = _plain(mapping)
    for dotted, text in (overrides or {}).items():
        _override(schema, mapping, dotted, text)
    return mapping


def to_dict(config) -> dict:
    """A resolved config as a nested dict of JSON types; `resolve` of it gives an equal config."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def differences(
    schema: type, old: Mapping, new: Mapping, prefix: str = "", *, restart: bool = False, by_content: bool = False
) -> list[str]:
    """Lines `key: old → new` for every key whose value differs and which a restart may not change.

    Keys whose content is compared instead (`by_content`) are left out, or with that argument are all there is.
    """
    fields = {f.name: f for f in dataclasses.fields(schema)}
    lines = []
    for name in sorted(set(old) | set(new)):
        field = fields.get(name)
        may_change = restart or (field is not None and field.metadata.get("restart", False))
        chosen = by_content == (field is not None and field.metadata.get("by_content", False))
        a, b = old.get(name), new.get(name)
        groups = isinstance(a, Mapping) and isinstance(b, Mapping) and field is not None
        if groups and dataclasses.is_dataclass(field.type):
            lines += differences(field.type, a, b, f"{prefix}{name}.", restart=may_change, by_content=by_content)
        elif groups and (cls := _named(field)):
            for group in sorted({*a, *b}):
                pair = a.get(group, {}), b.get(group, {})
                path = f"{prefix}{name}.{group}."
                lines += differences(cls, *pair, path, restart=may_change, by_content=by_content)
        elif a != b and not may_change and chosen:
            lines.append(f"{prefix}{name}: {json.dumps(a)} → {json.dumps(b)}")
    return lines


def describe(schema: type, values: Mapping, prefix: str = "--config.") -> list[str]:
    """Help lines, one per key: its dotted name, its value in a resolved config, permitted values and documentation."""
    lines = []
    for field in dataclasses.fields(schema):
        doc, choices, value = field.metadata["doc"], field.metadata.get("choices"), values[field.name]
        if dataclasses.is_dataclass(field.type):
            lines += describe(field.type, value, f"{prefix}{field.name}.")
        elif cls := _named(field):
            for name, group in value.items():
                lines += describe(cls, group, f"{prefix}{field.name}.{name}.")
        else:
            permitted = f" ({' | '.join(map(str, choices))})" if choices else ""
            lines.append(f"{prefix}{field.name}={json.dumps(value, ensure_ascii=False)}\n    {doc}{permitted}")
    return lines


def merge(base: Mapping, over: Mapping) -> dict:
    """`base` with the values of `over` laid over it, group by group; dotted names in `over` reach into groups."""
    out = _plain(base)
    for name, value in _plain(over).items():
        first, _, rest = name.partition(".")
        if rest or isinstance(value, Mapping):
            out[first] = merge(out.get(first, {}), {rest: value} if rest else value)
        else:
            out[first] = value
    return out


def keys(schema: type, prefix: str = "") -> list[str]:
    """All dotted keys of a schema, leaves only; NAME stands for the name of a group."""
    out = []
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            out += keys(field.type, f"{prefix}{field.name}.")
        elif cls := _named(field):
            out += keys(cls, f"{prefix}{field.name}.NAME.")
        else:
            out.append(prefix + field.name)
    return out


def choices(schema: type, dotted: str) -> tuple:
    """The permitted values of a key.

    Raises:
      UserError: the schema has no such key.
    """
    at, field = schema, None
    for part in dotted.split("."):
        fields = {f.name: f for f in dataclasses.fields(at)} if dataclasses.is_dataclass(at) else {}
        if part not in fields:
            raise UserError(f"config.{dotted}: this stage has no such key")
        field, at = fields[part], fields[part].type
    return field.metadata["choices"]


def _named(field: dataclasses.Field) -> type | None:
    """The dataclass of a field declared by `named`, or None."""
    return typing.get_args(field.type)[1] if typing.get_origin(field.type) is dict else None


def _plain(mapping) -> dict:
    if isinstance(mapping, ml_collections.ConfigDict):
        mapping = mapping.to_dict()
    if not isinstance(mapping, Mapping):
        raise UserError(f"--config: get_config must return a ConfigDict, not {type(mapping).__name__}")
    return {str(k): _plain(v) if isinstance(v, (Mapping, ml_collections.ConfigDict)) else v for k, v in mapping.items()}


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(sorted(known))}"


def _override(schema: type, mapping: dict, dotted: str, text: str) -> None:
    parts, at, group = dotted.split("."), schema, None
    for depth, part in enumerate(parts):
        if group is not None:  # `part` is the name of a group
            if depth == len(parts) - 1:
                raise UserError(f"--config.{dotted}: this is a group of keys; set one of {', '.join(keys(group))}")
            mapping, at, group = mapping.setdefault(_group_name(part, f"--config.{dotted}"), {}), group, None
            continue
        fields = {f.name: f for f in dataclasses.fields(at)}
        if part not in fields:
            full = {k.rsplit(".", 1)[-1]: k for k in keys(schema)}
            hint = difflib.get_close_matches(dotted, keys(schema), n=1, cutoff=0.6)
            near = hint[0] if hint else full.get(part)
            raise UserError(
                f"--config.{dotted}: unknown key"
                + (f"; did you mean --config.{near}?" if near else _nearest(part, fields))
            )
        field = fields[part]
        if depth == len(parts) - 1:
            if inner := field.type if dataclasses.is_dataclass(field.type) else _named(field):
                raise UserError(f"--config.{dotted}: this is a group of keys; set one of {', '.join(keys(inner))}")
            mapping[part] = _convert(text, field.type, f"--config.{dotted}", field.metadata)
        elif group := _named(field):  # groups are added to those that there are by default
            mapping = mapping.setdefault(part, {name: {} for name in field.default_factory()})
        elif not dataclasses.is_dataclass(field.type):
            raise UserError(f"--config.{dotted}: '{part}' is a single value and has no key '{parts[depth + 1]}'")
        else:
            mapping, at = mapping.setdefault(part, {}), field.type


def _build(schema: type, mapping: Mapping, where: str, defaults: Mapping):
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for name in mapping:
        if name not in fields:
            raise UserError(f"{where}.{name}: unknown key{_nearest(name, fields)}")
    values = {}
    for name, field in fields.items():
        path = f"{where}.{name}"
        if dataclasses.is_dataclass(field.type):
            inner = mapping.get(name, {})
            if not isinstance(inner, Mapping):
                raise UserError(f"{path}: must be a group of keys, got {inner!r}")
            values[name] = _build(field.type, inner, path, field.metadata["defaults"])
        elif cls := _named(field):
            groups = mapping.get(name, {group: {} for group in field.default_factory()})
            if not isinstance(groups, Mapping) or not all(isinstance(inner, Mapping) for inner in groups.values()):
                raise UserError(f"{path}: must be groups of keys by name, got {groups!r}")
            values[name] = {g: _build(cls, inner, f"{path}.{_group_name(g, path)}", {}) for g, inner in groups.items()}
        elif name in mapping:
            values[name] = _check(mapping[name], field.type, path, field.metadata)
        elif name in defaults:
            values[name] = defaults[name]
        elif field.default is dataclasses.MISSING:
            raise UserError(f"{path}: must be set ({field.metadata['doc']})")
    return schema(**values)


def _convert(text: str, kind: Any, path: str, metadata: Mapping):
    """Text from a command line to a value of the declared type."""
    if _optional(kind) and text.lower() in ("none", "null"):
        return None
    plain = _member(kind, several=text[:1] in ("(", "[") or "," in text)
    value: Any = text
    try:
        if plain is bool:
            value = {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        elif plain is int:
            value = int(text.replace("_", ""))
        elif plain is float:
            value = float(text)
        elif typing.get_origin(plain) is tuple:
            item = typing.get_args(plain)[0]
            items = ast.literal_eval(text) if text[:1] in "([" else [t for t in text.split(",") if t]
            value = tuple(_convert(str(t), item, path, {}) for t in items)
    except (KeyError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: must be {_name(kind)}, got {text!r}") from error
    return _check(value, kind, path, metadata)


def _check(value: Any, kind: Any, path: str, metadata: Mapping):
    """A value against the declared type and limits; lists become tuples, whole floats of int keys are refused."""
    if _optional(kind) and value is None:
        return None
    plain = _member(kind, several=isinstance(value, list | tuple))
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if typing.get_origin(plain) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{path}: must be {_name(kind)}, got {value!r}")
        value = tuple(_check(v, typing.get_args(plain)[0], path, {}) for v in value)
    elif not isinstance(value, plain) or (plain is not bool and isinstance(value, bool)):
        raise UserError(f"{path}: must be {_name(kind)}, got {value!r}")
    elif plain is float and not math.isfinite(value):
        raise UserError(f"{path}: must be a finite number, got {value}")
    if metadata.get("choices") and value not in metadata["choices"]:
        near = _nearest(str(value), [str(c) for c in metadata["choices"]])
        raise UserError(
            f"{path}: {value!r} is not one of {', '.join(map(str, metadata['choices']))}{near if '?' in near else ''}"
        )
    for bound, wrong, word in (("low", lambda v, b: v < b, "at least"), ("high", lambda v, b: v > b, "at most")):
        limit = metadata.get(bound)
        if limit is not None and any(wrong(v, limit) for v in (value if isinstance(value, tuple) else (value,))):
            raise UserError(f"{path}: must be {word} {limit}, got {value}")
    return value


def _optional(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) and types.NoneType in typing.get_args(kind)


def _member(kind: Any, *, several: bool) -> Any:
    """The type of a union that a value may have: its tuple for several values, else its single type."""
    if not isinstance(kind, types.UnionType):
        return kind
    members = [member for member in typing.get_args(kind) if member is not types.NoneType]
    return next((member for member in members if (typing.get_origin(member) is tuple) == several), members[0])


def _group_name(name: str, where: str) -> str:
    """The name of a group, which stands in dotted keys and in the names of metrics."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"{where}: '{name}' is no name of a group; use letters, digits, _ and -")
    return name


def _name(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if isinstance(kind, types.UnionType):
        return " or ".join("none" if t is types.NoneType else _name(t) for t in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"a list ({_name(typing.get_args(kind)[0])} each)"
    return names.get(kind, str(kind))
