"""Evaluation images against torchvision's transforms on Pillow images, pixel for pixel."""

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [torch]: run make parity")

from PIL import Image

from mae_pp_jax.data.evals import EvalConfig, crop
from tests.data.pictures import encode, noise
from tests.parity import references

SHAPES = [(375, 500), (500, 333), (299, 401), (64, 91), (256, 256), (700, 2000), (333, 448)]


@pytest.mark.parametrize("name", ["mae", "maws", "maws -nr", "zero-shot", "bilinear"])
def test_published_evaluation_transforms(name):
    references.define_torchvision_operators()
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    bicubic = dict(interpolation=InterpolationMode.BICUBIC)
    published, ours, side = {
        "mae": ([transforms.Resize(256, **bicubic), transforms.CenterCrop(224)], dict(share=0.875), 224),
        "maws": ([transforms.Resize((518, 518), **bicubic)], dict(crop="squeeze"), 518),
        "maws -nr": ([transforms.Resize(512, **bicubic), transforms.CenterCrop(512)], {}, 512),
        "zero-shot": ([transforms.Resize(224, **bicubic), transforms.CenterCrop(224)], {}, 224),
        "bilinear": ([transforms.Resize((224, 224))], dict(crop="squeeze", resize="bilinear"), 224),
    }[name]
    for seed, shape in enumerate(SHAPES):
        file = encode(noise(seed, *shape), "jpeg", quality=90)
        wanted = transforms.Compose(published)(Image.open(io.BytesIO(file)).convert("RGB"))
        found = crop(file, EvalConfig(**{"resize": "bicubic", **ours}), (side, side))
        np.testing.assert_array_equal(found, np.asarray(wanted))
