"""TPU slices by name (`v5p:4x4x8`, `2*v5e:16x16` for two, `cpu:8`), and their devices on a machine without any."""

import dataclasses
import importlib.util
import math
import re

import jax
from jax.experimental import topologies

from mae_pp_jax.core import hardware
from mae_pp_jax.core.errors import UserError

# Family as topologies are named → device kind as JAX names it, and devices per chip.
FAMILIES = {
    "v4": ("TPU v4", 1),
    "v5e": ("TPU v5 lite", 1),
    "v5p": ("TPU v5", 1),
    "v6e": ("TPU v6 lite", 1),
    "tpu7x": ("TPU7x", 2),
}
_NAME = re.compile(r"(?:(\d+)\*)?([a-z]\w*):(\d+(?:x\d+)*)")
_MEGACORE = {"v4": {"chip_config_name": "megacore"}}  # both cores of a chip are one device, as on a real slice
_SINGLE_CHIP = {"chips_per_host_bounds": [1, 1, 1]}  # hosts have 2 × 2 chips where nothing else is said


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that train together.

    Attributes:
      name: as the user wrote it.
      family: "cpu" or a key of `FAMILIES`.
      shape: chips along each side.
      count: how many such slices, joined by the data centre's network.
    """

    name: str
    family: str
    shape: tuple[int, ...]
    count: int

    @property
    def platform(self) -> str:
        return "cpu" if self.family == "cpu" else "tpu"

    @property
    def devices(self) -> int:
        """Number of devices, as JAX counts them."""
        return self.count * math.prod(self.shape) * (FAMILIES[self.family][1] if self.platform == "tpu" else 1)

    @property
    def chip(self) -> hardware.Chip | None:
        """What one device can do; None for CPUs."""
        return hardware.CHIPS[FAMILIES[self.family][0]] if self.platform == "tpu" else None


def parse(name: str) -> Slice:
    """The slice that a user names.

    Raises:
      UserError: it is written wrongly or no such chip is known.
    """
    match = _NAME.fullmatch(name)
    known = f"known: {', '.join(FAMILIES)}, cpu"
    if not match:
        raise UserError(
            f"--topology: cannot read {name!r}; write CHIP:SHAPE such as v5e:8x8, v5p:4x4x8, 2*v5e:16x16 or cpu:8"
        )
    count, family, shape = int(match[1] or 1), match[2], tuple(int(n) for n in match[3].split("x"))
    if family not in FAMILIES and family != "cpu":
        raise UserError(f"--topology: {name!r} names no chip that is known here; {known}")
    if min(shape) < 1 or count < 1:
        raise UserError(f"--topology: {name!r} has no chips; every size must be at least 1")
    if family == "cpu" and (len(shape) > 1 or count > 1):
        raise UserError(f"--topology: {name!r}: CPUs have no shape; write their number, such as cpu:8")
    return Slice(name, family, shape, count)


def environment(chosen: Slice, current: dict[str, str]) -> dict[str, str]:
    """Variables for a process that compiles for a slice, which must be set before it imports JAX."""
    out = {**current, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if chosen.platform == "cpu":
        out["XLA_FLAGS"] = f"{current.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={chosen.devices}"
    else:
        # libtpu looks for chips, their neighbours and a metadata server unless it is told that there are none.
        out |= {
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": "v5litepod-16",
        }
    return out


def libtpu_installed() -> bool:
    """Whether programs can be compiled for TPUs here."""
    return importlib.util.find_spec("libtpu") is not None


def devices(chosen: Slice) -> list[jax.Device]:
    """The devices of a slice; of TPUs they can be compiled for and nothing else.

    Raises:
      UserError: the compiler for TPUs is not installed, or no slice has that shape.
    """
    if chosen.platform == "cpu":
        return jax.devices("cpu")[: chosen.devices]
    if not libtpu_installed():
        raise UserError(
            "--topology: the compiler for TPUs (libtpu) is not installed; pip install -e '.[tpu]' -c constraints.txt"
        )
    options = {**_MEGACORE.get(chosen.family, {}), **(_SINGLE_CHIP if math.prod(chosen.shape) == 1 else {})}
    if chosen.count > 1:
        options["num_slices"] = chosen.count
    shape = "x".join(map(str, chosen.shape))
    try:
        found = topologies.get_topology_desc(f"{chosen.family}:{shape}", platform="tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise UserError(f"--topology: {chosen.name} is no slice that the compiler knows: {reason}") from error
    if len(found) != chosen.devices:
        raise UserError(f"--topology: {chosen.name} has {len(found)} devices here, not {chosen.devices}")
    return list(found)
