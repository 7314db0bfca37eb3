"""safetensors files: read through the library, written a tensor at a time (the library needs all of them at once)."""

import json
import struct
from collections.abc import Callable, Mapping

import numpy as np
from safetensors import SafetensorError, safe_open

from mae_pp_jax.core import storage
from mae_pp_jax.interop.tensors import BFLOAT16, Tensor, refuse

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def load(path: storage.Path) -> dict[str, Tensor]:
    """Name → tensor.

    Raises:
      UserError: the file is damaged or holds a type of number that is not read.
    """

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            # Opened anew for each tensor: the library maps the file, and pages once read would stay in memory.
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor(name)

        return read

    found = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():
                view = file.get_slice(name)
                if view.get_dtype() not in DTYPES:
                    raise refuse(path, f"{name} is of type {view.get_dtype()}; known: {', '.join(DTYPES)}")
                found[name] = Tensor(tuple(view.get_shape()), DTYPES[view.get_dtype()], reader(name))
    except SafetensorError as error:
        raise refuse(path, f"is no readable safetensors file ({error}); get a fresh copy") from error
    return found


def write(path: storage.Path, tensors: Mapping[str, Tensor], wrote: Callable[[int], None]) -> None:
    """Writes tensors in alphabetical order of their names; `wrote` is called with the bytes of each when written."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict = {"__metadata__": {"format": "pt"}}  # what transformers asks for
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        header[name] = dict(
            dtype=names[tensor.dtype], shape=list(tensor.shape), data_offsets=[end, end + tensor.nbytes]
        )
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begin at a multiple of 8
    with storage.filling(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name].read()).reshape(-1).view(np.uint8))
            wrote(tensors[name].nbytes)
