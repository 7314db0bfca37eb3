"""Opens a weight file of any kind, or the folder of a published model, and finds the state dict in it."""

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Mapping

from mae_pp_jax.core import storage
from mae_pp_jax.interop import npz_file, safetensors_file, state_dict, torch_file
from mae_pp_jax.interop.tensors import Tensor, refuse

INDEX = ".index.json"  # ends the name of the list of the files that a model was split into
# In the order in which transformers looks for them; with INDEX each.
STANDARD = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = ((".safetensors",), (".bin", ".pth", ".pt", ".ckpt", ".torch", ".npz"))  # what is preferred stands first
OTHERS = (".h5", ".msgpack", ".onnx", ".gguf", ".tflite")  # weights of kinds that are not read
_SHARD = re.compile(r".*-\d{5}-of-(\d{5})\..+")
_TRAINER = re.compile(r"(optimizer|scheduler|rng_state.*|random_states.*|scaler|training_args)\..+")


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A state dict.

    Attributes:
      path: what the user named, a file or a folder.
      parts: the files that hold the tensors.
      kind: "torch", "safetensors" or "npz".
      tensors: key → tensor.
      item: which set of weights of the file they are (`state_dict.Weights.name`).
      wrapped: whether they stood under "model", as facebookresearch/mae keeps them.
      averaged: whether they are a running average.
      left: what else there is in the file and its folder, name → what it is.
      settings: `config.json`, `preprocessor_config.json` and `1_Pooling/config.json` beside the file, as published with
        Hugging Face models and those of sentence-transformers.
    """

    path: storage.Path
    parts: tuple[storage.Path, ...]
    kind: str
    tensors: Mapping[str, Tensor]
    item: str
    wrapped: bool
    averaged: bool
    left: Mapping[str, str]
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


def number(file: WeightFile, name: str, default: float) -> float:
    """A number from the settings beside the file.

    Raises:
      UserError: it is no number.
    """
    value = file.settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise refuse(file.path, f"its config.json says {name}={value!r}, which is no number")
    return float(value)


def is_weights(name: str) -> bool:
    """Whether a file is one of weights by its name."""
    return name.endswith((*sum(SUFFIXES, ()), INDEX))


def open_weights(path: storage.Path, item: str = "auto") -> WeightFile:
    """Opens a file (.pth, .pt, .torch, .bin, .ckpt, .safetensors, .npz), an index of shards, or a model's folder.

    Args:
      path: the file or folder.
      item: which of several sets of weights; see `state_dict.find`.

    Raises:
      UserError: no such file, or it is damaged, of an unknown kind, or holds more than tensors and plain data; no such
        item.
    """
    if not storage.exists(path):
        raise refuse(path, "does not exist; give a file, a folder, a URL or a name (convert --list shows the names)")
    file, left = _in_folder(path) if storage.is_dir(path) else (path, {})
    if file.name.endswith(INDEX):
        parts, kind, tree = _shards(file)
    elif (shard := _SHARD.fullmatch(file.name)) and len(_shards_beside(file)) > 1:
        raise refuse(file, f"is one of {int(shard[1])} shards of a model; give its folder, {file.parent}")
    else:
        parts = (file,)
        kind, tree = _load(file)
    found = state_dict.find(path, tree, item)
    settings: dict = {}
    for name in ("config.json", "preprocessor_config.json", "1_Pooling/config.json"):
        settings |= _settings(file.parent / name)
    return WeightFile(
        path,
        parts,
        kind,
        found.tensors,
        found.name,
        found.under == ("model",),
        found.averaged,
        {**found.other, **left},
        settings,
    )


def _in_folder(folder: storage.Path) -> tuple[storage.Path, dict[str, str]]:
    """The weight file of a folder, or its index, and what is left beside it: name → what it is."""
    names = [name for name in storage.names(folder) if storage.is_file(folder / name)]
    readable = [name for name in names if name.endswith(sum(SUFFIXES, ()))]
    left = {name: "of a training" for name in readable if _TRAINER.fullmatch(name)}
    left |= {name: "weights of a kind that is not read" for name in names if name.endswith(OTHERS)}
    whole = [name for name in readable if not _SHARD.fullmatch(name) and name not in left]
    whole += [name for name in names if name.endswith(INDEX)]
    for suffixes in SUFFIXES:
        found = [name for name in whole if name.removesuffix(INDEX).endswith(suffixes)]
        standard = [name + end for name in STANDARD for end in ("", INDEX) if name + end in found]
        if len(found) > 1 and not standard:
            raise refuse(folder, f"holds several weight files ({', '.join(found)}); name the one to read")
        if found:
            chosen = (standard or found)[0]
            left |= {name: "not read: another file of weights" for name in whole if name != chosen}
            return folder / chosen, left
    if shards := [name for name in readable if _SHARD.fullmatch(name)]:
        raise refuse(folder, f"lacks the index of its shards ({shards[0]} …), a file *{INDEX}; get it too")
    held = f" (it has {', '.join(left)})" if left else ""
    raise refuse(folder, f"holds no {' or '.join(STANDARD)}, alone or in shards{held}; name the weight file itself")


def _shards_beside(file: storage.Path) -> list[str]:
    return [name for name in storage.names(file.parent) if _SHARD.fullmatch(name) or name.endswith(INDEX)]


def _shards(index: storage.Path) -> tuple[tuple[storage.Path, ...], str, dict[str, Tensor]]:
    """The files that an index names, their kind, and all their tensors.

    Raises:
      UserError: a file is absent, or a tensor that the index lists is in none of them.
    """
    wanted = _settings(index).get("weight_map")
    if not isinstance(wanted, Mapping) or not wanted:
        raise refuse(index, "has no weight_map; get a fresh copy")
    names = sorted(set(map(str, wanted.values())))
    for name in names:
        if "/" in name or not storage.is_file(index.parent / name):
            raise refuse(index, f"names {name!r}, which is no file in that folder; get a fresh copy")
    tensors: dict[str, Tensor] = {}
    for name in names:
        kind, content = _load(index.parent / name)
        if not isinstance(content, Mapping):
            raise refuse(index.parent / name, "holds no dict of tensors; get a fresh copy")
        # Of a tensor that several shards hold, the index says which one counts.
        tensors |= {key: value for key, value in content.items() if key not in tensors or wanted.get(key) == name}
    if absent := [key for key in wanted if key not in tensors]:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise refuse(
            index,
            f"lists {', '.join(absent[:3])}{more}, which no shard holds; get a fresh copy of the index and shards",
        )
    return tuple(index.parent / name for name in names), kind, tensors


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


def _settings(path: storage.Path) -> dict:
    if not storage.is_file(path):
        return {}
    try:
        content = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise refuse(path, f"is no readable JSON ({error}); get a fresh copy or remove it") from error
    return content if isinstance(content, dict) else {}
