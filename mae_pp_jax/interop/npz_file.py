"""NumPy archives (.npz), big_vision's files: headers first, arrays one by one, objects never."""

import zipfile
from collections.abc import Callable

import numpy as np

from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.interop.tensors import BFLOAT16, Tensor, refuse

EXPANSION_LIMIT = 1000  # a compressed entry of more than 1 MiB that grows beyond this is a bomb


def load(path: storage.Path) -> dict[str, Tensor]:
    """Name → tensor.

    Raises:
      UserError: the file is damaged, or holds Python objects.
    """
    found = {}
    try:
        with storage.reading(path) as whole, zipfile.ZipFile(whole) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                with archive.open(entry) as file:
                    shape, dtype = _header(file)
                    header = file.tell()
                if dtype.hasobject:
                    raise refuse(path, f"refused: {name} holds Python objects (nothing of them was run)")
                dtype, stored = (BFLOAT16, dtype) if dtype == np.dtype("V2") else (dtype, dtype)
                tensor = Tensor(shape, dtype, _reader(path, entry.filename, stored, dtype))
                if entry.file_size != header + tensor.nbytes:
                    raise refuse(path, f"{name} has {entry.file_size:,} bytes instead of {header + tensor.nbytes:,}")
                if entry.file_size > max(1 << 20, EXPANSION_LIMIT * entry.compress_size):
                    raise refuse(path, f"refused: {name} would grow {EXPANSION_LIMIT}-fold when decompressed")
                found[name] = tensor
    except UserError:
        raise
    except Exception as error:  # whatever a damaged archive makes zipfile and NumPy raise becomes one line
        raise refuse(
            path, f"is no readable .npz file ({str(error).splitlines()[0][:200]}); get a fresh copy"
        ) from error
    return found


def _header(file) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _reader(path: storage.Path, entry: str, stored: np.dtype, dtype: np.dtype) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with storage.reading(path) as whole, zipfile.ZipFile(whole) as archive, archive.open(entry) as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
        return values.view(dtype) if stored != dtype else values

    return read
