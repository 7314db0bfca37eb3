"""Pictures that tests draw, as files of every kind."""

import io
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image


def picture(height=40, width=60) -> np.ndarray:
    """A smooth picture, red growing to the right and green downwards, that JPEG keeps well."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], -1).astype(np.uint8)


def noise(seed: int, height=40, width=60) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    """A picture as Pillow writes it."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def class_folders(root: pathlib.Path, classes: Sequence[str], number: int, extension=".png", size=(6, 5)) -> str:
    """A folder with a folder of small pictures per class; the level of picture i of class c is 20 c + i."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(number):
            cv2.imwrite(str(root / name / f"{i:02}{extension}"), np.full((*size, 3), 20 * c + i, np.uint8))
    return str(root)


def whole_files() -> dict[str, bytes]:
    """One file of every kind that is read, by its name."""
    image = Image.fromarray(noise(0))
    frames = dict(save_all=True, append_images=[Image.fromarray(picture())], duration=100)
    return {
        "jpeg": encode(image, "jpeg", quality=90),
        "jpeg with restart markers": encode(image, "jpeg", quality=90, restart_marker_blocks=2),
        "progressive jpeg": encode(image, "jpeg", progressive=True),
        "grey jpeg": encode(image.convert("L"), "jpeg"),
        "cmyk jpeg": encode(image.convert("CMYK"), "jpeg"),
        "png": encode(image, "png"),
        "16-bit png": encode(Image.fromarray(noise(0)[..., 0].astype(np.uint16) * 257), "png"),
        "palette png": encode(image.convert("P"), "png"),
        "webp": encode(image, "webp"),
        "lossless webp": encode(image, "webp", lossless=True),
        "animated webp": encode(image, "webp", **frames),
        "gif": encode(image, "gif"),
        "animated gif": encode(image, "gif", **frames),
        "bmp": encode(image, "bmp"),
        "png with alpha": encode(image.convert("RGBA"), "png"),
        "webp with alpha": encode(Image.fromarray(np.dstack([noise(0), noise(1)[..., 0]])), "webp"),
        "tiff": encode(image, "tiff"),
        "avif": encode(image, "avif"),
        "jpeg 2000": encode(image, "jpeg2000"),
    }
