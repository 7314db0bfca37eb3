"""PyTorch's files (.pth, .pt, .torch, .bin), read without PyTorch and without running anything that they contain.

Such a file is a pickle whose tensors are views of storages that lie beside it: entries of a zip archive (since PyTorch
1.6), or bytes that follow the pickle (before). The pickle is read by an unpickler that knows tensors, dicts, lists,
numbers and text alone; it refuses any other name before anything is called. Storages are read one by one, on demand.
"""

import collections
import dataclasses
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.storage import Path, filling, reading
from mae_pp_jax.interop.tensors import BFLOAT16, Tensor, refuse

STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": BFLOAT16,
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
PICKLE_LIMIT = 64 << 20  # bytes; the pickle of a checkpoint with a thousand tensors and their moments is below 1 MiB
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ALIGNMENT = 64  # where PyTorch lets storages begin, so that they can be mapped into memory


@dataclasses.dataclass
class _Storage:
    """Bytes of one or more tensors: `offset` in the file, known at once in archives and last in the old form."""

    dtype: np.dtype
    count: int
    offset: int | None


def load(path: Path):
    """The content of a file: dicts, lists, numbers and text, with a `Tensor` for every tensor.

    Raises:
      UserError: it is damaged, or holds something else than that.
    """
    try:
        if is_archive(path):
            return _load_archive(path)
        return _load_legacy(path)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes the unpickler raise becomes one line
        why = str(error).splitlines()[0][:200] if str(error) else ""
        raise refuse(path, f"is no readable PyTorch file ({type(error).__name__}: {why}); get a fresh copy") from error


def is_archive(path: Path) -> bool:
    """Whether a file is a zip archive."""
    with reading(path) as file:
        return zipfile.is_zipfile(file)


def _load_archive(path: Path):
    with reading(path) as file, zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next(
            (name.removesuffix("/data.pkl") for name in entries if name.count("/") == 1 and "/data.pkl" in name), None
        )
        if root is None or f"{root}/constants.pkl" in entries:
            raise refuse(path, "is an archive, but not one of tensors (TorchScript programs are not read)")
        if f"{root}/byteorder" in entries and archive.read(f"{root}/byteorder") != b"little":
            raise refuse(path, "was written on a big-endian machine; save it again on a little-endian one")
        _stored(path, entries[f"{root}/data.pkl"])
        if entries[f"{root}/data.pkl"].file_size > PICKLE_LIMIT:
            raise refuse(
                path,
                f"its pickle has {entries[f'{root}/data.pkl'].file_size:,} bytes; at most {PICKLE_LIMIT:,} are read",
            )
        content = archive.read(f"{root}/data.pkl")

    storages: dict[str, _Storage] = {}

    def storage(kind: np.dtype, key: str, count: int) -> _Storage:
        if key not in storages:
            entry = entries.get(f"{root}/data/{key}")
            if entry is None:
                raise refuse(path, f"lacks the data of storage {key!r}; get a fresh copy")
            _stored(path, entry)
            if entry.file_size != count * kind.itemsize:
                raise refuse(
                    path, f"storage {key!r} has {entry.file_size:,} bytes instead of {count * kind.itemsize:,}"
                )
            storages[key] = _Storage(kind, count, _data_offset(path, entry))
        return storages[key]

    return _unpickle(path, io.BytesIO(content), content, storage)


def _stored(path: Path, entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise refuse(path, f"its entry {entry.filename} is compressed, which PyTorch never does; get a fresh copy")


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed entry begin: after its local header, which has a length of its own."""
    with reading(path) as file:
        file.seek(entry.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise refuse(path, f"its entry {entry.filename} is damaged; get a fresh copy")
        name, extra = struct.unpack("<HH", header[26:30])
        offset = entry.header_offset + 30 + name + extra
        if offset + entry.file_size > file.seek(0, io.SEEK_END):
            raise refuse(path, f"ends within {entry.filename}; get a fresh copy")
        return offset


def _load_legacy(path: Path):
    """The form before PyTorch 1.6: five pickles (magic, version, machine, content, storage keys), then the storages."""
    with reading(path) as file:
        head = file.read(PICKLE_LIMIT)
        size = file.seek(0, io.SEEK_END)
    stream = io.BytesIO(head)

    def plain():
        return _unpickle(path, stream, head, lambda *_: None)

    if plain() != LEGACY_MAGIC:
        raise refuse(path, "is not a PyTorch file")
    plain(), plain()
    storages: dict[str, _Storage] = {}
    tree = _unpickle(path, stream, head, lambda kind, key, count: storages.setdefault(key, _Storage(kind, count, None)))
    for key in plain():
        at = stream.tell()
        stream.seek(at)
        storage = storages[key]
        with reading(path) as file:
            file.seek(at)
            (count,) = struct.unpack("<q", file.read(8))
        storage.offset = at + 8
        end = storage.offset + count * storage.dtype.itemsize
        if count != storage.count or end > size:
            raise refuse(path, f"ends within storage {key!r} or disagrees about its length; get a fresh copy")
        stream.seek(end)
    return tree


class _Inert:
    """Stands for plain data of Python and NumPy that training scripts keep beside the weights; nothing is kept of it."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, _):
        pass

    def __hash__(self):
        return 0


# Settings, paths, devices, types of numbers, NumPy's numbers and arrays such as a best accuracy or a random state.
_INERT = {
    *(("pathlib", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")),
    *(("pathlib._local", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *(("torch", name) for name in ("device", "float32", "float16", "bfloat16", "float64")),
    ("argparse", "Namespace"),
    ("_codecs", "encode"),  # how bytes are written by the protocol that PyTorch uses
}


class _Unpickler(pickle.Unpickler):
    """Knows the few names that tensors and plain data need; `storage` turns a persistent id into a `_Storage`."""

    def __init__(self, path: Path, file, storage: Callable):
        super().__init__(file, encoding="utf-8")
        self._path, self._storage = path, storage

    def find_class(self, module: str, name: str):
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch", "Size"): tuple,
            ("collections", "defaultdict"): lambda *_: {},
            ("builtins", "dict"): dict,
            ("builtins", "set"): list,
            ("__builtin__", "dict"): dict,
            ("__builtin__", "set"): list,
        }
        if (module, name) in known:
            return known[module, name]
        if (module, name) in _INERT:
            return _Inert
        if module == "torch" and name in STORAGES:
            return name
        raise refuse(
            self._path,
            f"refused: it contains {module}.{name}, which is neither a tensor nor plain data (nothing of it was run); "
            "save the weights alone, with torch.save(model.state_dict(), FILE)",
        )

    def persistent_load(self, pid):
        tag, kind, key, _, count, *_ = pid
        if tag != "storage" or kind not in STORAGES or not isinstance(key, str) or not isinstance(count, int):
            raise ValueError("unknown kind of storage")
        return self._storage(STORAGES[kind], key, count)

    def _tensor(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_) -> Tensor:
        """A view of a storage; it must lie within it and not repeat its numbers."""
        count = math.prod(shape)
        last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
        if (
            min((offset, count, *shape, *strides), default=0) < 0
            or count > storage.count
            or (count and last >= storage.count)
        ):
            raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {storage.count} numbers")
        return Tensor(tuple(shape), storage.dtype, lambda: _read(self._path, storage, offset, shape, strides))


def _read(path: Path, storage: _Storage, offset: int, shape: tuple, strides: tuple) -> np.ndarray:
    dense = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    in_order = all(length == 1 or stride == step for length, stride, step in zip(shape, strides, dense))
    size = storage.dtype.itemsize
    first, count = (offset, math.prod(shape)) if in_order else (0, storage.count)
    raw = np.fromfile(path, np.uint8, count * size, offset=storage.offset + first * size)
    if raw.size != count * size:
        raise refuse(path, "ends within its data; get a fresh copy")
    values = raw.view(storage.dtype)
    if in_order:
        return values.reshape(shape)
    return np.lib.stride_tricks.as_strided(values[offset:], shape, [s * size for s in strides]).copy()


def _unpickle(path: Path, stream: io.BytesIO, content: bytes, storage: Callable):
    """Reads the pickle at the stream's position.

    A pass over its opcodes comes first: it meets every truncated or oversized length without reserving memory for it,
    and memo numbers beyond the length of the pickle, for which the unpickler would reserve a table of that size.
    """
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):
        if "PUT" in opcode.name and int(argument) > len(content):
            raise ValueError("memo number out of range")
    stream.seek(start)
    return _Unpickler(path, stream, storage).load()


def write(path: Path, tensors: Mapping[str, Tensor], wrapper: str | None, wrote: Callable[[int], None]) -> None:
    """Writes a state dict as `torch.save` does, a tensor at a time.

    Args:
      path: the file.
      tensors: key → tensor.
      wrapper: key under which the state dict stands in a dict of its own ("model" in MAE's files), or None.
      wrote: called with the bytes of each tensor when it is written.
    """
    names = {dtype: name for name, dtype in STORAGES.items()}
    with filling(path) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry("archive/data.pkl"), _pickle(tensors, wrapper, names))
        archive.writestr(_entry("archive/byteorder"), b"little")
        for index, tensor in enumerate(tensors.values()):
            entry = _entry(f"archive/data/{index}")
            # 20 bytes of the local header's extra field are zipfile's own, for lengths above 4 GiB.
            begin = archive.fp.tell() + 30 + len(entry.filename) + 20 + 4
            padding = -begin % ALIGNMENT
            entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(entry, "w", force_zip64=True) as file:
                file.write(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8))
            wrote(tensor.nbytes)
        archive.writestr(_entry("archive/version"), b"3\n")


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))


def _pickle(tensors: Mapping[str, Tensor], wrapper: str | None, names: Mapping[np.dtype, str]) -> bytes:
    """The pickle of a state dict. Written out, as Python's pickler can only name what can be imported: PyTorch."""

    def text(value: str) -> bytes:
        return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()

    def integer(value: int) -> bytes:
        encoded = pickle.encode_long(value)
        return pickle.LONG1 + bytes([len(encoded)]) + encoded

    def sequence(parts: Iterable[bytes]) -> bytes:
        return pickle.MARK + b"".join(parts) + pickle.TUPLE

    empty = pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE

    def tensor(index: int, value: Tensor) -> bytes:
        storage_class = pickle.GLOBAL + f"torch\n{names[value.dtype]}\n".encode()
        count = integer(math.prod(value.shape))
        storage = sequence([text("storage"), storage_class, text(str(index)), text("cpu"), count]) + pickle.BINPERSID
        strides = [math.prod(value.shape[axis + 1 :]) for axis in range(len(value.shape))]
        arguments = [storage, integer(0), sequence(map(integer, value.shape)), sequence(map(integer, strides))]
        arguments += [pickle.NEWFALSE, empty]
        return pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + sequence(arguments) + pickle.REDUCE

    items = b"".join(text(key) + tensor(index, value) for index, (key, value) in enumerate(tensors.items()))
    body = empty + pickle.MARK + items + pickle.SETITEMS
    if wrapper is not None:
        body = pickle.EMPTY_DICT + text(wrapper) + body + pickle.SETITEM
    return pickle.PROTO + b"\x02" + body + pickle.STOP
