"""Compiles the train step of a stage for a TPU slice and reports what it needs: the dict that `plan --json` gives."""

import collections
import contextlib
import logging
import math
import re
import resource
import time

import jax

from mae_pp_jax.core import hardware, partition
from mae_pp_jax.core import program as program_lib
from mae_pp_jax.core.errors import RunStopped, UserError
from mae_pp_jax.core.stage import Stage
from mae_pp_jax.planning import cost, hlo, kernels, slices

log = logging.getLogger(__name__)

# The TPU compiler's two ways to say so; "temporaries" holds arguments and results too.
_NEEDS = re.compile(
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"
    r"|temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LARGEST = 15  # operations and places that a report lists


def measure(stage: Stage, chosen: slices.Slice) -> dict:
    """Compiles the real train step of a stage for a slice; nothing runs.

    Returns:
      What the program needs on each device and how fast it may be, JSON types. `fits` is False where the compiler found
      no way to fit it into memory; then only the total is known. The keys that users rely on are fits, hbm_bytes
      {params, optimizer, activations, code, total}, hbm_capacity_bytes, model_flops, op_cycle_seconds,
      utilization_bound, collectives [{kind, bytes, count}] and compile_seconds.

    Raises:
      UserError: the slice is unknown, the mesh does not cover it, the batch does not split.
      RunStopped: the compiler cannot compile the step, for another reason than memory.
    """
    with hardware.compiling_for(chosen.platform):
        mesh = partition.make_mesh(stage.config.mesh, devices=slices.devices(chosen))
        program = program_lib.make(stage, mesh)
        report = _facts(program, chosen)
        began = time.monotonic()
        compiled, error = _compile(program)
        report["compile_seconds"] = round(time.monotonic() - began, 1)
        if error is not None:
            report |= _too_large(error, report)
        else:
            report |= _memory(compiled, report)
            report |= _speed(compiled, program, chosen, report)
    # Linux counts the peak of resident memory in KiB.
    report["compiler_peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return report


def outline(stage: Stage, chosen: slices.Slice) -> dict:
    """What a search wants to know before it compiles anything.

    Returns:
      `params_bytes` and `state_bytes` (with optimizer and average) of the whole model, `global_batch`, and
      `fsdp_sizes`: the sizes of the mesh axis `fsdp` that can be laid on the slice, ascending.
    """
    devices, tensor = slices.devices(chosen), max(1, stage.config.mesh.tensor)
    with hardware.compiling_for(chosen.platform):
        one = partition.MeshConfig(data=1, fsdp=1, tensor=1)
        state = program_lib.make(stage, partition.make_mesh(one, devices=devices[:1])).shapes
    sizes = []
    for fsdp in (n for n in range(1, len(devices) // tensor + 1) if len(devices) % (n * tensor) == 0):
        with contextlib.suppress(UserError):
            partition.make_mesh(partition.MeshConfig(fsdp=fsdp, tensor=tensor), devices=devices)
            sizes.append(fsdp)
    return dict(
        params_bytes=_local_bytes(state.params),
        state_bytes=_local_bytes((state.params, state.opt_state, state.ema)),
        global_batch=stage.config.global_batch,
        fsdp_sizes=sizes,
    )


def _facts(program: program_lib.Program, chosen: slices.Slice) -> dict:
    """What is known before anything is compiled."""
    config, chip = program.stage.config, chosen.chip
    state = {
        "params": program.shapes.params,
        "optimizer": (program.shapes.opt_state, program.shapes.ema),
    }
    return dict(
        topology=chosen.name,
        devices=chosen.devices,
        mesh={axis: program.mesh.shape[axis] for axis in partition.MESH_AXES},
        global_batch=config.global_batch,
        model_flops=program.stage.train_flops_per_example() * config.global_batch,
        hbm_capacity_bytes=None if chip is None else int(chip.memory),
        hbm_bytes={
            **{name: _local_bytes(tree) for name, tree in state.items()},
            **{"activations": None, "code": None, "total": None},
        },
        op_cycle_seconds=None,
        utilization_bound=None,
        collectives=[],
        notes=[],
    )


def _compile(program: program_lib.Program):
    """(the compiled step, None), or (None, what the compiler raised)."""
    try:
        return program.compile(), None
    except jax.errors.JaxRuntimeError as error:
        return None, error


def _local_bytes(tree) -> int:
    """Bytes of the shards of a tree of ShapeDtypeStructs that lie on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _memory(compiled, report: dict) -> dict:
    """HBM of the compiled program by kind. The state is donated: old and new share their place and count once."""
    stats = compiled.memory_analysis()
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    parts = dict(
        params=report["hbm_bytes"]["params"],
        optimizer=report["hbm_bytes"]["optimizer"],
        activations=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
    total = held + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
    parts["batch"] = total - sum(parts.values())  # the batch, metrics, counters, and padding of small arrays
    capacity = report["hbm_capacity_bytes"]
    return dict(hbm_bytes={**parts, "total": total}, fits=None if capacity is None else total <= capacity)


def _too_large(error: jax.errors.JaxRuntimeError, report: dict) -> dict:
    """The result where the compiler found no way to fit the program into memory."""
    match = _NEEDS.search(str(error))
    if not match:
        first = str(error).strip().splitlines()[0]
        raise RunStopped(f"the compiler for {report['topology']} gave up on this program: {first}") from error
    used, used_unit, capacity, capacity_unit = (group for group in match.groups() if group is not None)
    total, available = float(used) * _UNITS[used_unit], float(capacity) * _UNITS[capacity_unit]
    return dict(fits=False, hbm_bytes={**report["hbm_bytes"], "total": int(total)}, hbm_capacity_bytes=int(available))


def _speed(compiled, program: program_lib.Program, chosen: slices.Slice, report: dict) -> dict:
    """Seconds by the compiler's cycles, collectives, and the largest operations."""
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        return dict(notes=[f"the compiler cannot show this program as text, so its cycles are unknown: {reason}"])
    chip = chosen.chip
    found = cost.measure(hlo.parse(text), chip, _kernel_flops(program) if f'"{cost.KERNEL}"' in text else {})
    kinds: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for transfer in found.collectives:
        kinds[transfer.kind][0] += transfer.bytes
        kinds[transfer.kind][1] += transfer.count
    out = dict(
        collectives=[
            dict(kind=kind, bytes=moved, count=count)
            for kind, (moved, count) in sorted(kinds.items(), key=lambda item: -item[1][0])
        ],
        unread_loops=found.unread_loops,
    )
    if chip is None:
        return out
    seconds = found.seconds
    return out | dict(
        op_cycle_seconds=seconds,
        utilization_bound=report["model_flops"] / (seconds * chosen.devices * chip.flops),
        places=_largest_places(found),
        largest_operations=[_row(o) for o in sorted(found.operations, key=lambda o: -o.seconds)[:LARGEST]],
        without_estimate=_without_estimate(found),
    )


def _kernel_flops(program: program_lib.Program) -> dict[kernels.Shapes, float]:
    """FLOPs of one call of each Pallas kernel of the step, by its shapes."""
    with jax.set_mesh(program.mesh):
        return kernels.flops(jax.make_jaxpr(program.step)(program.shapes, program.stage.batch_spec()))


def _row(operation: cost.Operation) -> dict:
    return dict(
        name=operation.name,
        opcode=operation.opcode,
        where=operation.where,
        count=operation.count,
        seconds=operation.seconds,
    )


def _largest_places(found: cost.Cost) -> list[dict]:
    """Seconds by the function an operation was traced in, largest first."""
    places: collections.Counter[str] = collections.Counter()
    for operation in found.operations:
        places[operation.where] += operation.seconds
    return [dict(where=where, seconds=seconds) for where, seconds in places.most_common(LARGEST)]


def _without_estimate(found: cost.Cost) -> list[dict]:
    """What was charged without an estimate of the compiler, by opcode and place, dearest first."""
    groups: dict[tuple[str, str], dict] = {}
    for operation in found.operations:
        if not operation.estimated:
            row = groups.setdefault(
                (operation.opcode, operation.where),
                dict(opcode=operation.opcode, where=operation.where, count=0, seconds=0.0, bytes=0, flops=0.0),
            )
            row["count"] += operation.count
            row["seconds"] += operation.seconds
            row["bytes"] += operation.bytes
            unknown = operation.flops is None or row["flops"] is None
            row["flops"] = None if unknown else row["flops"] + operation.flops
    return sorted(groups.values(), key=lambda row: -row["seconds"])
