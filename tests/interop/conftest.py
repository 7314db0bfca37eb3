"""Small weight files of several formats, made without the reference packages."""

import collections
import io
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from mae_pp_jax.interop import matching, tables, torch_file
from mae_pp_jax.interop.tensors import Tensor

# 8×8 pixels in 2×2 patches.
SIZES = dict(D=16, M=64, T=5, N=4, p=4, C=3, H=2, h=8, d=8, m=32, t=5, X=48, E=12, F=10, V=7, P=9, Y=2)
DEPTHS = {"encoder/blocks": 2, "decoder/blocks": 1, "text/blocks": 0}


@pytest.fixture
def random_weights():
    """`random_weights(format, *groups)`: key → random array, as a model of that format with these groups has them."""
    return draw_weights


def draw_weights(name: str, *groups: str, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    format = next(f for f in tables.FORMATS if f.name == name)
    rows = matching.expected(format, frozenset(groups), DEPTHS)
    return {key: rng.normal(size=matching.shape_of(row, SIZES)).astype(dtype) for key, row, _ in rows if "*" not in key}


@pytest.fixture
def save_torch():
    """`save_torch(path, weights, wrapper)` writes a .pth."""

    def save(path: pathlib.Path, weights, wrapper: str | None = None) -> pathlib.Path:
        tensors = {k: Tensor(v.shape, v.dtype, lambda v=v: v) for k, v in weights.items()}
        torch_file.write(path, tensors, wrapper, lambda count: None)
        return path

    return save


@pytest.fixture
def save_tree():
    """`save_tree(path, tree)` writes dicts, lists and plain values with NumPy arrays as tensors, as `torch.save` does."""
    return write_tree


def write_tree(path: pathlib.Path, tree) -> pathlib.Path:
    storages: list[np.ndarray] = []
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    kinds = {kind: name for name, kind in torch_file.STORAGES.items()}
    for name in torch_file.STORAGES:
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def rebuild(*_):
        pass

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild

    class Storage:
        def __init__(self, array):
            self.array = array

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                storages.append(np.ascontiguousarray(value.array))
                key = str(len(storages) - 1)
                return "storage", getattr(torch, kinds[value.array.dtype]), key, "cpu", value.array.size
            return None

        def reducer_override(self, value):
            if type(value) is np.ndarray and value.dtype in kinds:
                strides = tuple(s // value.itemsize for s in value.copy().strides)
                return rebuild, (Storage(value), 0, value.shape, strides, False, collections.OrderedDict())
            return NotImplemented

    content = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        Pickler(content, 2).dump(tree)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content.getvalue())
        for key, array in enumerate(storages):
            file.writestr(f"archive/data/{key}", array.tobytes())
    return path
