"""What the chips can do, where it is published, and the settings every command starts JAX with."""

import contextlib
import contextvars
import dataclasses
import logging
from collections.abc import Iterator

import jax

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError

log = logging.getLogger(__name__)

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them; vendors' data sheets where nothing else is said.

    Attributes:
      flops: dense bf16 matrix products, FLOP/s.
      memory: bytes of HBM that a program may use; of TPUs what their compiler says when a program is too large.
      bandwidth: of HBM, bytes/s.
      clock: Hz of the matrix units, in which the TPU compiler's cycle estimates count; None for other chips.
    """

    flops: float
    memory: float
    bandwidth: float
    clock: float | None = None


# Device kind → chip. Clocks of TPUs follow from their peaks: v4 and v5p have 8, v5e 4 matrix units of 128 × 128, v6e
# and each half of a tpu7x 4 units of 256 × 256, 2 FLOPs per multiply-add.
CHIPS = {
    "TPU v4": Chip(275e12, 30.75 * GIB, 1.2e12, 1.05e9),
    "TPU v5 lite": Chip(197e12, 15.75 * GIB, 0.82e12, 1.5e9),
    "TPU v5": Chip(459e12, 95.74 * GIB, 2.765e12, 1.75e9),
    "TPU v6 lite": Chip(918e12, 31.25 * GIB, 1.64e12, 1.75e9),
    "TPU7x": Chip(1153e12, 94.75 * GIB, 3.69e12, 2.2e9),
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40e9, 1.555e12),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80e9, 2.039e12),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80e9, 3.35e12),
    "NVIDIA H200": Chip(989e12, 141e9, 4.8e12),
    "Tesla T4": Chip(65e12, 16e9, 0.32e12),
}

_compiling_for: contextvars.ContextVar[str | None] = contextvars.ContextVar("compiling_for", default=None)


def platform() -> str:
    """The platform that is compiled for: "cpu", "tpu" or "gpu"."""
    return _compiling_for.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[None]:
    """Inside, `platform` answers `name`: programs are made for devices that this machine does not have."""
    token = _compiling_for.set(name)
    try:
        yield
    finally:
        _compiling_for.reset(token)


def peak_flops(device: jax.Device) -> float | None:
    """bf16 peak of a device in FLOP/s, or None where it is not known (CPUs among them)."""
    chip = CHIPS.get(device.device_kind)
    return chip.flops if chip else None


def enable_compilation_cache() -> None:
    """Compiled programs are kept on disk, so that a restart or a run that differs by seed compiles nothing.

    `JAX_COMPILATION_CACHE_DIR` names the folder; by default `~/.cache/mae_pp_jax/compiled`.
    """
    folder = jax.config.jax_compilation_cache_dir
    if folder and "://" not in folder:
        try:
            storage.check_writable(folder, "JAX_COMPILATION_CACHE_DIR", folder=True)
        except UserError as error:
            log.warning("%s; the user's cache is used instead", error)
            folder = None
    if not folder:
        jax.config.update("jax_compilation_cache_dir", str(storage.user_cache() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
