"""What a weight file holds: named tensors that are described at once and read one by one."""

import dataclasses
import math
from collections.abc import Callable

import ml_dtypes
import numpy as np

from mae_pp_jax.core.errors import UserError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = {"float64": np.dtype(np.float64), "float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}
FLOATS["bfloat16"] = BFLOAT16


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
      shape: as the file says.
      dtype: as stored.
      read: reads the values, an array of that shape and dtype; nothing else of the file is held in memory.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def refuse(path, why: str) -> UserError:
    """The error for a weight file that cannot be taken: which one, and in `why` the reason and how to fix it."""
    return UserError(f"--from: {path}: {why}")
