"""The training that `data hashtags` proposes: model, image size and batch by the data and the machine at hand."""

import dataclasses
import logging
import math
import shlex

import jax
import numpy as np

from mae_pp_jax.core import hardware
from mae_pp_jax.data import decode, fields, images

log = logging.getLogger(__name__)

_LOOKED_AT = 32  # pictures whose size is read
_STEPS = 100  # an epoch has at least so many, if the batch can be as small
_SIDES = ((224, 16), (128, 16), (96, 8), (64, 8), (32, 4))  # pixels of an image, and of a patch
_FEW = 100_000  # images for which a small model is enough
_PER_BYTE = 256 / 80e9  # images of 224 × 224 in a B/16 per byte of a device, with room to spare
_UNKNOWN = 8 * hardware.GIB  # memory of an accelerator that does not say what it has
_NARROW = "--config.model.width=96 --config.model.depth=4 --config.model.heads=4"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What trains.

    Attributes:
      devices: accelerators, over all hosts; 0 where CPUs train.
      memory: bytes of one.
    """

    devices: int
    memory: float

    @classmethod
    def here(cls) -> "Machine":
        """The machine that this process runs on."""
        try:
            device = jax.local_devices()[0]
        except RuntimeError as error:  # an accelerator that another process holds
            log.info("no accelerator can be reached (%s): the next command is for CPUs", error)
            return cls(0, 0.0)
        if device.platform == "cpu":
            return cls(0, 0.0)
        known = hardware.CHIPS.get(device.device_kind)
        memory = known.memory if known else (device.memory_stats() or {}).get("bytes_limit", _UNKNOWN)
        return cls(jax.device_count(), memory)


def usual_side(source: fields.Source) -> int:
    """The median of the shorter sides of some pictures, in pixels."""
    sides = []
    for index in np.unique(np.linspace(0, len(source) - 1, _LOOKED_AT).astype(int)):
        try:
            sides.append(min(images.pixels(source[int(index)]["image"]).shape[:2]))
        except decode.Unreadable:
            continue  # training passes over it too
    return int(np.median(sides)) if sides else 0


def training(data: str, vocabulary: str, *, side: int, records: int, machine: Machine) -> str:
    """The arguments of `train` for WSP on a dataset.

    Images are as large as the pictures are, up to 224 pixels, and 64 on CPUs. A batch is a power of two.

    Args:
      data: name of the dataset.
      vocabulary: its file.
      side: the usual shorter side of its pictures, in pixels.
      records: training images.
      machine: what trains.
    """
    most = 224 if machine.devices else 64
    image, patch = next((s for s in _SIDES if s[0] <= min(side, most)), _SIDES[-1])
    if machine.devices:
        size = "S" if records < _FEW else "B"
        tokens = (image / patch) ** 2 / (224 / 16) ** 2
        room = machine.devices * machine.memory * _PER_BYTE / tokens * (2 if size == "S" else 1)
        batch = min(1024, max(_power(room), machine.devices))
    else:
        size, batch = "Ti", 64
    batch = max(min(batch, _power(records / _STEPS)), min(32, batch), machine.devices)
    sizes = f"size={size}/{patch},image_size={image},batch={batch}"
    recipe = shlex.quote(f"configs/wsp/folder.py:data={data},vocabulary={vocabulary},{sizes}")
    return f"--config={recipe}" + ("" if machine.devices else f" {_NARROW}")


def _power(number: float) -> int:
    """The largest power of two that is not above a number, at least 1."""
    return 2 ** max(0, math.floor(math.log2(max(number, 1))))
