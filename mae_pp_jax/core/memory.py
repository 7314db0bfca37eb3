"""The memory that CPUs can still have, and whether a training fits into it.

Accelerators refuse what they cannot hold. A system does not: it promises more memory than there is, and slows down for
minutes or kills processes when it is used.
"""

import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mae_pp_jax.core import hardware
from mae_pp_jax.core.errors import RunStopped


def free() -> int | None:
    """Bytes that processes of this machine or container can still have, with swap; None where it does not say."""
    try:
        lines = (line.split() for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
        kib = {words[0]: int(words[1]) for words in lines}
        left = 1024 * (kib["MemAvailable:"] + kib.get("SwapFree:", 0))
    except (OSError, ValueError, KeyError, IndexError):  # not Linux
        return None
    folder = pathlib.Path("/sys/fs/cgroup")  # of a container
    for limit in (folder / "memory.max", folder / "memory" / "memory.limit_in_bytes"):
        try:
            left = min(left, int(limit.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return left


def check_state(state: Any, mesh: Mesh) -> None:
    """Refuses a train state that CPUs of this process cannot hold.

    Args:
      state: ShapeDtypeStructs with shardings.
      mesh: of the devices.

    Raises:
      RunStopped: it is larger than the memory that is free.
    """
    leaves = [leaf for leaf in jax.tree.leaves(state) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    shards = ((leaf, np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int)) for leaf in leaves)
    needed = sum(int(size) * leaf.dtype.itemsize * len(leaf.sharding.addressable_devices) for leaf, size in shards)
    _check(needed, mesh, "parameters and optimizer state", "choose a smaller config.model")


def check_program(compiled: jax.stages.Compiled, mesh: Mesh) -> None:
    """Refuses a compiled train step, whose arguments are there already, if CPUs of this process cannot run it.

    Raises:
      RunStopped: it needs more than the memory that is free.
    """
    stats = compiled.memory_analysis()
    if stats is not None:
        needed = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        levers = "lower config.global_batch or the size of an example, raise config.microbatches, set "
        levers += "config.model.remat=full"
        _check(needed * len(mesh.local_devices), mesh, "activations and gradients", levers)


def _check(needed: int, mesh: Mesh, what: str, levers: str) -> None:
    there = free()
    if mesh.devices.flat[0].platform == "cpu" and there is not None and needed > there:
        raise RunStopped(
            f"out of memory ({what} take {needed / hardware.GIB:,.1f} GiB, and {there / hardware.GIB:,.1f} GiB are "
            f"free); {levers}, or use more machines with config.mesh.fsdp"
        )
