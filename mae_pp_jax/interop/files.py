"""Opens a weight file of any kind and finds the state dict in it."""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping

from mae_pp_jax.core import storage
from mae_pp_jax.interop import npz_file, safetensors_file, torch_file
from mae_pp_jax.interop.tensors import Tensor, refuse

WRAPPERS = ("model", "state_dict")  # keys under which training scripts keep the weights among other things
PREFIXES = ("module.", "params/")  # that may stand before every key: of torch's DataParallel, of big_vision
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")  # of models split into several files
SINGLES = ("model.safetensors", "pytorch_model.bin")


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A state dict.

    Attributes:
      path: what the user named, a file or a folder.
      parts: the files that hold the tensors.
      kind: "torch", "safetensors" or "npz".
      tensors: key → tensor.
      wrapper: key under which the state dict stood, or None.
      left: what stands beside it in the file and is no weight (optimizer, epoch …).
      settings: `config.json` and `preprocessor_config.json` beside the file, as published with Hugging Face models.
    """

    path: storage.Path
    parts: tuple[storage.Path, ...]
    kind: str
    tensors: Mapping[str, Tensor]
    wrapper: str | None
    left: tuple[str, ...]
    settings: Mapping

    def sha256(self, progress: Callable[[int], None]) -> str:
        """SHA-256 over the bytes of all parts; `progress` is called with the bytes read."""
        digest = hashlib.sha256()
        for part in self.parts:
            with storage.reading(part) as file:
                while block := file.read(1 << 22):
                    digest.update(block)
                    progress(len(block))
        return digest.hexdigest()


def open_weights(path: storage.Path) -> WeightFile:
    """Opens a file (.pth, .pt, .torch, .bin, .safetensors, .npz) or a folder of a Hugging Face model.

    Raises:
      UserError: no such file, or it is damaged, of an unknown kind, or holds more than tensors and plain data.
    """
    if not storage.exists(path):
        raise refuse(path, "does not exist; give a file, a folder, a URL or a name (convert --list shows the names)")
    parts = _parts(path)
    tensors: dict[str, Tensor] = {}
    kind, wrapper, left = "", None, ()
    for part in parts:
        kind, tree = _load(part)
        found, wrapper, left = _state_dict(part, tree)
        tensors |= found
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    folder = path if storage.is_dir(path) else path.parent
    settings: dict = {}
    for name in ("config.json", "preprocessor_config.json"):
        settings |= _settings(folder / name)
    return WeightFile(path, parts, kind, tensors, wrapper, left, settings)


def _parts(path: storage.Path) -> tuple[storage.Path, ...]:
    if storage.is_file(path):
        return (path,)
    for name in INDEXES:
        if storage.is_file(path / name):
            index = _settings(path / name).get("weight_map")
            if not isinstance(index, Mapping) or not index:
                raise refuse(path / name, "has no weight_map; get a fresh copy")
            names = sorted(set(map(str, index.values())))
            for part in names:
                if "/" in part or not storage.is_file(path / part):
                    raise refuse(path / name, f"names {part!r}, which is no file in that folder; get a fresh copy")
            return tuple(path / part for part in names)
    for name in SINGLES:
        if storage.is_file(path / name):
            return (path / name,)
    raise refuse(path, f"holds none of {', '.join((*SINGLES, *INDEXES))}; name the weight file itself")


def _load(path: storage.Path) -> tuple[str, object]:
    with storage.reading(path) as file:
        head = file.read(16)
    if head[8:9] == b"{":
        return "safetensors", safetensors_file.load(path)
    if torch_file.is_archive(path):
        with storage.reading(path) as file, zipfile.ZipFile(file) as archive:
            if all(name.endswith(".npy") for name in archive.namelist()):
                return "npz", npz_file.load(path)
    elif head[:1] != b"\x80":
        raise refuse(path, "is no PyTorch, safetensors or .npz file; check what was downloaded")
    return "torch", torch_file.load(path)


def _state_dict(path: storage.Path, tree) -> tuple[dict[str, Tensor], str | None, tuple[str, ...]]:
    """The tensors of a file, the key they stood under, and what stands beside them."""
    if not isinstance(tree, Mapping):
        raise refuse(path, "holds no dict of tensors; save it with torch.save(model.state_dict(), FILE)")
    for wrapper in (None, *WRAPPERS):
        inner = tree if wrapper is None else tree.get(wrapper)
        if isinstance(inner, Mapping):
            tensors = {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
            if tensors:
                inside = [str(key) for key in inner if str(key) not in tensors]
                outside = [] if wrapper is None else [str(key) for key in tree if key != wrapper]
                return tensors, wrapper, tuple(inside + outside)
    shown = ", ".join(map(str, list(tree)[:5]))
    raise refuse(path, f"holds no tensors, neither itself nor under {' or '.join(WRAPPERS)} (it has {shown})")


def _settings(path: storage.Path) -> dict:
    if not storage.is_file(path):
        return {}
    try:
        content = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise refuse(path, f"is no readable JSON ({error}); get a fresh copy or remove it") from error
    return content if isinstance(content, dict) else {}
