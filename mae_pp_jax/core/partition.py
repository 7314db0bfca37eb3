"""One device mesh, and the rules that say how parameters, optimizer state and batches lie on it.

Sharding is data: a stage states the axes of each parameter by its path (`Stage.parameter_axes`), merged from the tables
that models declare beside their modules, and `config.mesh.rules` says which mesh axes parameters are split over. A
laptop is the mesh (1, 1, 1).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mae_pp_jax.core.config import key
from mae_pp_jax.core.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # a batch is split over both; parameters over `fsdp` and `tensor`

# What an axis of a parameter may be besides whole (None): split over a mesh axis, or a stack. Along `layers` stand the
# blocks of one model; along `splits` stand models that are independent of one another.
STACKS = ("layers", "splits")
SPLIT_OVER = ("fsdp", "tensor")
WHOLE_SHARE = 0.01  # of all bytes: a larger parameter must be covered by a rule

# Table of `config.mesh.rules` → the mesh axes that parameters are split over.
TABLES: dict[str, tuple[str, ...]] = {"replicate": (), "fsdp": ("fsdp",), "fsdp_tensor": ("fsdp", "tensor")}

Axes = tuple[str | None, ...]  # of a parameter, one entry per axis


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Shape of the device mesh; a size of -1 takes the devices that the others leave."""

    data: int = key(-1, "devices over which only the batch is split", low=-1)
    fsdp: int = key(1, "devices over which batch and parameters are split", low=-1)
    tensor: int = key(1, "devices over which the channels inside a layer are split", low=-1)
    rules: str = key("fsdp_tensor", "mesh axes over which parameters are split", choices=tuple(TABLES))


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices. Slices joined by a network lie along `data`.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or neighbouring chips cannot form them.
    """
    devices = list(devices if devices is not None else jax.devices())
    shape = [config.data, config.fsdp, config.tensor]
    known = int(np.prod([s for s in shape if s > 0]))
    if shape.count(-1) == 1 and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if min(shape) < 1 or np.prod(shape) != len(devices):
        raise UserError(
            f"config.mesh: data × fsdp × tensor = {' × '.join(map(str, shape))} does not cover {len(devices)} "
            f"device(s); set the sizes to multiply to {len(devices)}, one of them may be -1"
        )
    auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", None) for device in devices})
    try:
        if slices == 1:
            return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=auto, devices=devices)
        if shape[0] % slices:
            raise UserError(
                f"config.mesh.data: {shape[0]} does not divide over {slices} slices; use a multiple of them"
            )
        inside, across = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
        return Mesh(mesh_utils.create_hybrid_device_mesh(inside, across, devices), MESH_AXES, axis_types=auto)
    except NotImplementedError as error:  # a torus cannot be cut in every way
        raise UserError(
            f"config.mesh: data × fsdp × tensor = {' × '.join(map(str, shape))} cannot be laid on these chips; use "
            "sizes that are products of whole sides of the slice"
        ) from error


def check_batch(global_batch: int, mesh: Mesh, microbatches: int = 1, models: int = 1) -> None:
    """Raises `UserError` unless the global batch splits evenly over microbatches and the devices that share each.

    Args:
      global_batch: examples per step.
      mesh: the mesh.
      microbatches: parts of the batch in turn.
      models: independent models that each device has equal parts of the examples of.
    """
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    pieces = shards * microbatches * models
    if global_batch % pieces:
        near = max(pieces, round(global_batch / pieces) * pieces)
        parts = f"{models} models with {microbatches} " if models > 1 else f"{microbatches} "
        parts = f"{parts}microbatches of " if microbatches > 1 or models > 1 else ""
        raise UserError(
            f"config.global_batch: {global_batch} does not divide over {parts}{shards} devices (data × fsdp); "
            f"use a multiple of {pieces}, such as {near}"
        )


def microbatches(batch, count: int):
    """Cuts a pytree of global arrays [batch, …] into [count, batch / count, …].

    Part i takes the rows i, i + count, …, so that every device keeps its own rows and nothing moves between them.
    """

    def split(x):
        pieces = jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)
        return constrain(pieces, (None, "batch", *(None,) * (x.ndim - 1)))

    return jax.tree.map(split, batch)


def constrain(x: jax.Array, axes: tuple) -> jax.Array:
    """Pins the layout of an activation at a block border; without a mesh in context it does nothing.

    Args:
      x: any array.
      axes: one entry per axis of x: "batch", the name of a mesh axis or None (whole).
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, _activation_spec(axes))


def divides(size: int, axis: str) -> bool:
    """Whether an axis of so many entries can be split evenly over a mesh axis; without a mesh in context it can."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or size % mesh.shape[axis] == 0


def on_each_device(function: Callable, axes: tuple, out_axes: tuple) -> Callable:
    """`function` applied to every device's own part of arrays, for what XLA cannot split by itself.

    Args:
      function: from one array, or several, to one array, or several in a tuple.
      axes: of its argument, as in `constrain`; or a tuple with those of each argument.
      out_axes: the same of what it returns.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=_specs(axes), out_specs=_specs(out_axes), check_vma=False)


def batch_shards() -> int:
    """Parts that the batch is split into by the mesh in context; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def local_shape(shape: tuple[int, ...], axes: tuple) -> tuple[int, ...]:
    """Shape of one device's part of an activation laid out as `constrain` does."""
    mesh = jax.sharding.get_abstract_mesh()
    return shape if mesh.empty else NamedSharding(mesh, _activation_spec(axes)).shard_shape(shape)


def _specs(axes: tuple):
    several = any(isinstance(entry, tuple) for entry in axes)
    return tuple(map(_activation_spec, axes)) if several else _activation_spec(axes)


def _activation_spec(axes: tuple) -> PartitionSpec:
    return PartitionSpec(*(BATCH_AXES if axis == "batch" else axis for axis in axes))


def axes_of(rules: Sequence[tuple[str, Axes]], shapes: Mapping[str, Any]) -> dict[str, Axes]:
    """The axes of every parameter: those of the first rule whose pattern matches the whole path.

    A small parameter that no rule covers is whole.

    Args:
      rules: (pattern, axes), as `Stage.parameter_axes` gives them.
      shapes: path → anything with `shape` and `dtype`.

    Raises:
      UserError: a parameter of more than 1% of all bytes that no rule covers, or a rule that does not fit a shape.
    """
    total, out = sum(_bytes(leaf.shape, leaf) for leaf in shapes.values()), {}
    for path, leaf in shapes.items():
        axes = next((axes for pattern, axes in rules if re.fullmatch(pattern, path)), None)
        if axes is None:
            share = _bytes(leaf.shape, leaf) / total
            if share > WHOLE_SHARE:
                raise UserError(
                    f"parameter axes: no rule covers {path} {tuple(leaf.shape)}, {share:.0%} of all bytes; add "
                    f"(r'{re.escape(path)}', …) to the stage's parameter_axes, with None for each axis to keep it whole"
                )
            axes = (None,) * len(leaf.shape)
        if len(axes) != len(leaf.shape) or set(axes) - {*STACKS, *SPLIT_OVER, None}:
            raise UserError(
                f"parameter axes: {path} {tuple(leaf.shape)} is said to have axes {axes}; name each of its "
                f"{len(leaf.shape)} axes by one of {', '.join((*STACKS, *SPLIT_OVER))} or None"
            )
        out[path] = axes
    return out


def parameter_spec(axes: Axes, shape: tuple[int, ...], rules: str, mesh: Mesh) -> PartitionSpec:
    """Where one parameter with these axes lies under the table `rules`.

    An axis that its mesh axis does not divide stays whole; `table` shows such leaves.
    """
    split = TABLES[rules]
    return PartitionSpec(
        *(
            axis if axis in split and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(axes, shape, strict=True)
        )
    )


def shardings(tree, axes: Mapping[str, Axes], rules: str, mesh: Mesh):
    """Shardings of a whole train state (or of parameters alone).

    A leaf whose key path ends in a parameter's path and that has its axes (the parameter itself, its momentum, its
    average) lies as that parameter does; everything else (counters, metrics) is replicated.

    Args:
      tree: pytree of arrays or ShapeDtypeStructs.
      axes: path → axes of all parameters, from `axes_of`.
      rules: name of a table.
      mesh: the mesh.
    """

    def leaf_sharding(key_path, leaf):
        names = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", "")))) for k in key_path]
        for start in range(len(names)):
            found = axes.get("/".join(names[start:]))
            if found is not None and len(found) == len(leaf.shape):
                return NamedSharding(mesh, parameter_spec(found, leaf.shape, rules, mesh))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of every array of a batch over data × fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


@functools.cache
def reader(mesh: Mesh) -> tuple[int, int]:
    """Which part of every global batch this process reads, (index, number of parts): the rows of its own devices.

    Processes that only share channels (`tensor` over several hosts) read the same part.

    Raises:
      UserError: processes share some rows of a batch and not others.
    """
    parts: dict[int, set[int]] = {}
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    for device, (rows,) in batch_sharding(mesh).devices_indices_map((shards,)).items():
        parts.setdefault(device.process_index, set()).add(rows.start or 0)
    distinct = sorted({tuple(sorted(part)) for part in parts.values()})
    if sum(map(len, distinct)) != shards or len({len(part) for part in distinct}) != 1:
        raise UserError(
            f"config.mesh: tensor = {mesh.shape['tensor']} cuts across the devices of {len(parts)} processes; "
            "use a number that divides the devices of one, or is a multiple of them"
        )
    return distinct.index(tuple(sorted(parts[jax.process_index()]))), len(distinct)


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch (see `reader`) as global device arrays."""
    sharding, (_, parts) = batch_sharding(mesh), reader(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (len(rows) * parts, *rows.shape[1:]))
        for name, rows in batch.items()
    }


def table(parts: Mapping[str, tuple], mesh: Mesh) -> str:
    """Text: bytes on one device by part, and leaves above 1% of the total that stayed replicated.

    Args:
      parts: name → (tree of shapes, tree of shardings).
      mesh: the mesh.
    """
    rows, whole = [], []
    sizes = {
        name: [
            (jax.tree_util.keystr(path, simple=True, separator="/"), leaf, sharding)
            for (path, leaf), sharding in zip(
                jax.tree_util.tree_leaves_with_path(tree), jax.tree_util.tree_leaves(placed), strict=True
            )
        ]
        for name, (tree, placed) in parts.items()
    }
    total = sum(_bytes(leaf.shape, leaf) for leaves in sizes.values() for _, leaf, _ in leaves)
    for name, leaves in sizes.items():
        here = sum(_bytes(sharding.shard_shape(leaf.shape), leaf) for _, leaf, sharding in leaves)
        full = sum(_bytes(leaf.shape, leaf) for _, leaf, _ in leaves)
        rows.append(f"  {name:<12} {_human(full):>10} in all {_human(here):>10} per device")
        whole += [
            f"{name}/{path}".rstrip("/")  # a part may be one leaf
            for path, leaf, sharding in leaves
            if mesh.size > 1 and sharding.is_fully_replicated and _bytes(leaf.shape, leaf) > 0.01 * total
        ]
    shape = " × ".join(f"{axis} {mesh.shape[axis]}" for axis in MESH_AXES)
    lines = [f"mesh: {shape}", *rows]
    if whole:
        lines.append(f"  replicated, each above 1% of the total: {', '.join(whole)}")
    return "\n".join(lines)


def _bytes(shape, leaf) -> int:
    return int(np.prod(shape)) * np.dtype(leaf.dtype).itemsize


def _human(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
