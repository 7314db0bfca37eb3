"""Decoding of every kind of file that people have, and crops."""

import io

import numpy as np
import pytest
from PIL import Image

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import images

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def _encode(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _decode(data: bytes) -> np.ndarray:
    return images.decode(data, lambda: "here")


def _picture(height=40, width=60) -> np.ndarray:
    """A smooth picture, red growing to the right and green downwards, that JPEG keeps well."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], -1).astype(np.uint8)


@pytest.mark.parametrize("kind, tolerance", [("png", 0), ("bmp", 0), ("webp", 12), ("jpeg", 12)])
def test_decode_gives_rgb(kind, tolerance):
    out = _decode(_encode(Image.fromarray(_picture()), format=kind, quality=95))
    assert out.dtype == np.uint8 and out.shape == (40, 60, 3)
    assert np.abs(out.astype(int) - _picture()).max() <= tolerance


def test_decode_greyscale_alpha_and_16_bit():
    grey = _picture()[..., 0]
    expected = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(_decode(_encode(Image.fromarray(grey), format="png")), expected)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(_decode(_encode(deep, format="png")), expected)
    alpha = np.dstack([_picture(), np.full((40, 60), 128, np.uint8)])
    np.testing.assert_array_equal(_decode(_encode(Image.fromarray(alpha), format="png")), _picture())


def test_decode_cmyk_jpeg_as_rgb():
    image = Image.fromarray(_picture()).convert("CMYK")
    out = _decode(_encode(image, format="jpeg", quality=98))
    assert out.shape == (40, 60, 3)
    assert np.abs(out.astype(int) - _picture()).mean() < 6


@pytest.mark.parametrize(
    "orientation, upright", [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)]
)
def test_decode_respects_exif_orientation(orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = _decode(_encode(Image.fromarray(_picture()), format="jpeg", quality=98, exif=exif))
    expected = upright(_picture())
    assert out.shape == expected.shape
    assert np.abs(out.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("data", [b"", b"no image at all", _encode(Image.fromarray(_picture()), format="png")[:60]])
def test_unreadable_image_is_named(data):
    with pytest.raises(UserError, match="/photos/7.jpg is not a readable image"):
        images.decode(data, lambda: "/photos/7.jpg")


def test_random_resized_crop_takes_parts_within_the_bounds():
    y, x = np.mgrid[:64, :64]
    image = np.stack([x * 3, y * 3, x * 0], -1).astype(np.uint8)  # a pixel's colour tells where it comes from
    areas, aspects = [], []
    for draws in np.random.default_rng(0).random((300, images.CROP_DRAWS)):
        out = images.random_resized_crop(image, 32, draws, SCALE, RATIO)
        assert out.shape == (32, 32, 3) and out.dtype == np.uint8
        # Across 32 pixels of the result the coordinate runs through 31/32 of the part's width.
        width, height = (np.ptp(out[..., c].astype(float)) / 3 * 32 / 31 for c in (0, 1))
        areas.append(width * height / 64**2)
        aspects.append(width / height)
    assert 0.15 < min(areas) < 0.3 and 0.8 < max(areas) < 1.05
    assert 0.4 < np.mean(areas) < 0.65
    assert min(aspects) > 0.65 and max(aspects) < 1.55
    assert abs(np.mean(np.log(aspects))) < 0.05


def test_random_resized_crop_of_a_strip_falls_back_to_the_centre():
    image = np.zeros((10, 400, 3), np.uint8)
    image[:, 190:210] = 255
    out = images.random_resized_crop(image, 8, np.full(images.CROP_DRAWS, 0.5), (0.9, 1.0), RATIO)
    assert out.shape == (8, 8, 3) and (out == 255).all()


def test_full_crop_at_size_is_the_image_itself():
    image = _picture(32, 32)
    out = images.random_resized_crop(image, 32, np.full(images.CROP_DRAWS, 0.999), (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_array_equal(out, image)


def test_shift_crop_moves_by_every_amount_and_fills_with_zeros():
    image = np.full((8, 8, 3), 200, np.uint8)
    image[3, 4] = 255
    seen = set()
    for draws in np.random.default_rng(0).random((200, images.CROP_DRAWS)):
        out = images.shift_crop(image, 8, draws, 1)
        (y,), (x,) = np.nonzero(out[..., 0] == 255)
        seen.add((int(y) - 3, int(x) - 4))
        assert (out == 0).all(-1).sum() == 64 - (8 - abs(y - 3)) * (8 - abs(x - 4))
    assert seen == {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}


@pytest.mark.parametrize("height, width, size", [(40, 60, 16), (60, 40, 16), (7, 5, 24), (16, 16, 16), (33, 1000, 32)])
def test_center_crop_takes_the_middle(height, width, size):
    out = images.center_crop(_picture(height, width), size)
    assert out.shape == (size, size, 3)
    middle = np.array([(width - 1) / width, (height - 1) / height]) * 127.5
    one_pixel = 255 / min(height, width)
    np.testing.assert_allclose(out[..., :2].mean((0, 1)), middle, atol=max(3, one_pixel))
