"""Small weight files of several formats, made without the reference packages."""

import pathlib

import numpy as np
import pytest

from mae_pp_jax.interop import matching, tables, torch_file
from mae_pp_jax.interop.tensors import Tensor

# 8×8 pixels in 2×2 patches.
SIZES = dict(D=16, M=64, T=5, N=4, p=4, C=3, H=2, h=8, d=8, m=32, t=5, X=48, E=12, F=10)
DEPTHS = {"encoder/blocks": 2, "decoder/blocks": 1}


@pytest.fixture
def random_weights():
    """`random_weights(format, *groups)`: key → random array, as a model of that format with these groups has them."""

    def draw(name: str, *groups: str, seed: int = 0, dtype=np.float32) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        format = next(f for f in tables.FORMATS if f.name == name)
        rows = matching.expected(format, frozenset(groups), DEPTHS)
        return {
            key: rng.normal(size=matching.shape_of(row, SIZES)).astype(dtype) for key, row, _ in rows if "*" not in key
        }

    return draw


@pytest.fixture
def save_torch():
    """`save_torch(path, weights, wrapper)` writes a .pth."""

    def save(path: pathlib.Path, weights, wrapper: str | None = None) -> pathlib.Path:
        tensors = {k: Tensor(v.shape, v.dtype, lambda v=v: v) for k, v in weights.items()}
        torch_file.write(path, tensors, wrapper, lambda count: None)
        return path

    return save
