"""Crops and resizing."""

import cv2
import numpy as np
import pytest
from PIL import Image

from mae_pp_jax.data import decode, images
from tests.data.pictures import encode, noise, picture

SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def test_random_resized_crop_takes_parts_within_the_bounds():
    y, x = np.mgrid[:64, :64]
    image = np.stack([x * 3, y * 3, x * 0], -1).astype(np.uint8)  # a pixel's colour tells where it comes from
    areas, aspects = [], []
    for draws in np.random.default_rng(0).random((300, images.CROP_DRAWS)):
        out = images.random_resized_crop(image, (32, 32), draws, SCALE, RATIO)
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
    out = images.random_resized_crop(image, (8, 8), np.full(images.CROP_DRAWS, 0.5), (0.9, 1.0), RATIO)
    assert out.shape == (8, 8, 3) and (out == 255).all()


def test_full_crop_at_size_is_the_image_itself():
    image = picture(32, 32)
    out = images.random_resized_crop(image, (32, 32), np.full(images.CROP_DRAWS, 0.999), (1.0, 1.0), (1.0, 1.0))
    np.testing.assert_array_equal(out, image)


def test_shift_crop_moves_by_every_amount_and_fills_with_zeros():
    image = np.full((8, 8, 3), 200, np.uint8)
    image[3, 4] = 255
    seen = set()
    for draws in np.random.default_rng(0).random((200, images.CROP_DRAWS)):
        out = images.shift_crop(image, (8, 8), draws, 1)
        (y,), (x,) = np.nonzero(out[..., 0] == 255)
        seen.add((int(y) - 3, int(x) - 4))
        assert (out == 0).all(-1).sum() == 64 - (8 - abs(y - 3)) * (8 - abs(x - 4))
    assert seen == {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}


@pytest.mark.parametrize("height, width, size", [(40, 60, 16), (60, 40, 16), (7, 5, 24), (16, 16, 16), (33, 1000, 32)])
def test_center_crop_takes_the_middle(height, width, size):
    out = images.center_crop(picture(height, width), (size, size))
    assert out.shape == (size, size, 3)
    middle = np.array([(width - 1) / width, (height - 1) / height]) * 127.5
    one_pixel = 255 / min(height, width)
    np.testing.assert_allclose(out[..., :2].mean((0, 1)), middle, atol=max(3, one_pixel))


def test_center_crop_keeps_the_share_that_it_is_told():
    """The inner 7/8: what is in the outer sixteenth on each side is not seen."""
    image = np.zeros((256, 512, 3), np.uint8)
    image[:, :144] = image[:, -144:] = image[:16] = image[-16:] = 255
    assert images.center_crop(image, (224, 224), 0.875).max() == 0
    assert images.center_crop(image, (224, 224)).max() == 255


@pytest.mark.parametrize(
    "shape, resized, corner",
    [
        # (height, width) → the shorter side 256, the longer one rounded down; half of what is over, .5 to the even place.
        ((300, 401), (256, 342), (16, 59)),  # 256 · 401 / 300 = 342.2
        ((375, 500), (256, 341), (16, 58)),  # 341.3; 117 / 2 = 58.5 → 58
        ((500, 376), (340, 256), (58, 16)),  # 340.4
        ((333, 448), (256, 344), (16, 60)),  # 344.4
        ((100, 134), (256, 343), (16, 60)),  # 343.04, enlarged; 119 / 2 = 59.5 → 60
        ((512, 512), (256, 256), (16, 16)),
    ],
)
def test_published_evaluations_see_these_pixels(shape, resized, corner):
    """torchvision's Resize(256, BICUBIC) and CenterCrop(224) on Pillow images, as MAE and timm evaluate at 224."""
    image = noise(5, *shape)
    whole = np.asarray(Image.fromarray(image).resize(resized[::-1], Image.Resampling.BICUBIC))
    wanted = whole[corner[0] : corner[0] + 224, corner[1] : corner[1] + 224]
    np.testing.assert_array_equal(images.center_crop(image, (224, 224), 0.875, "bicubic"), wanted)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_squeezing_by_the_filters_of_pillow(name):
    image = noise(6, 40, 90)
    wanted = np.asarray(Image.fromarray(image).resize((32, 48), Image.Resampling[name.upper()]))
    np.testing.assert_array_equal(images.squeeze(image, (48, 32), name), wanted)
    assert np.abs(images.squeeze(image, (48, 32)).astype(int) - wanted).mean() > 1


def test_a_border_is_cut_off():
    image = noise(7, 9, 12)
    np.testing.assert_array_equal(images.without_border(encode(image, "png"), 2), image[2:7, 2:10])
    with pytest.raises(decode.Unreadable, match="9×12 pixels are no more than a border of 5"):
        images.without_border(image, 5)


def test_squeeze_shows_everything():
    image = picture(40, 80)
    out = images.squeeze(image, (20, 20))
    np.testing.assert_allclose(out.mean((0, 1)), image.mean((0, 1)), atol=1)
    np.testing.assert_allclose(out[0, 0], image[:2, :4].mean((0, 1)), atol=1)


@pytest.mark.parametrize("side", [100, 300, 700])
def test_crop_of_a_large_jpeg_differs_little_from_that_of_its_pixels(side):
    """Decoding at a reduced size and resizing bilinearly, against decoding in full and averaging areas."""
    image = cv2.resize(noise(0, 10, 12), (side + 50, side), interpolation=cv2.INTER_CUBIC)
    data = encode(image, "jpeg", quality=90)
    for draws in np.random.default_rng(1).random((10, images.CROP_DRAWS)):
        ours = images.random_resized_crop(data, (64, 64), draws, SCALE, RATIO)
        full = images.random_resized_crop(decode.decode(data), (64, 64), draws, SCALE, RATIO)
        assert np.abs(ours.astype(int) - full).mean() < 4 < image.std()


@pytest.mark.parametrize(("down", "across"), [(4, 4), (1, 2), (8, 1)])
def test_a_crop_that_shrinks_much_is_an_average_and_not_a_sample(down, across):
    image = noise(0, 32 * down, 32 * across)
    draws = np.full(images.CROP_DRAWS, 0.5)
    out = images.random_resized_crop(image, (32, 32), draws, (1.0, 1.0), (across / down, across / down))
    average = image.reshape(32, down, 32, across, 3).mean((1, 3))
    assert np.abs(out - average).max() <= 2  # each halving rounds


@pytest.fixture
def made(monkeypatch):
    """The pixels of every image that OpenCV is asked to make."""
    found = []
    resize, warp = cv2.resize, cv2.warpAffine

    def note(make):
        def noting(image, *args, **kwargs):
            out = make(image, *args, **kwargs)
            found.append(out.shape[0] * out.shape[1])
            return out

        return noting

    monkeypatch.setattr(cv2, "resize", note(resize))
    monkeypatch.setattr(cv2, "warpAffine", note(warp))
    return found


EXTREME = [(1, 60_000), (60_000, 1), (3, 50_000), (40_000, 40), (1, 1), (2, 3), (4000, 5000), (1, 3_000_000)]


@pytest.mark.parametrize("shape", EXTREME, ids=str)
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_the_work_for_a_crop_is_bounded_whatever_the_shape(shape, size, made):
    image = np.zeros((*shape, 3), np.uint8)
    draws = np.full(images.CROP_DRAWS, 0.5)
    crops = [
        lambda: images.center_crop(image, size),
        lambda: images.center_crop(image, size, 0.05),
        lambda: images.center_crop(image, size, 0.5, "bicubic"),
        lambda: images.squeeze(image, size),
        lambda: images.shift_crop(image, size, draws, 2),
        lambda: images.random_resized_crop(image, size, draws, SCALE, RATIO),
        lambda: images.random_resized_crop(image, size, draws, (1e-4, 1.0), (1e-3, 1e3)),
    ]
    for crop in crops:
        assert crop().shape == (*size, 3)
    # Shrinking makes no more than there was.
    assert max(made, default=0) <= max(64 * size[0] * size[1], image.size // 3)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("length", [400, 70_000])
def test_a_strip_shows_its_middle(length, turned):
    """Bright where the distance from the middle is at most one pixel, along a strip 3 pixels thick."""
    image = np.zeros((3, length, 3), np.uint8)
    image[:, length // 2 - 1 : length // 2 + 1] = 240
    image = image.transpose(1, 0, 2) if turned else image
    out = images.center_crop(image, (30, 30))[..., 0].astype(float)
    out = out.T if turned else out
    np.testing.assert_allclose(out, out[:, ::-1], atol=2)
    # The strip's 3 pixels fill 30, of which the bright ones are 20.
    assert abs(out.mean() - 160) < 12 and (out[:, 13:17] > 230).all() and (out[:, [0, -1]] < 60).all()


def test_an_enlarged_centre_is_that_of_the_whole_enlarged(monkeypatch):
    image = noise(3, 12, 200)
    whole = images.center_crop(image, (24, 24))
    monkeypatch.setattr(images, "_MOST_ENLARGED", 1)
    part = images.center_crop(image, (24, 24))
    assert np.abs(part.astype(int) - whole).max() <= 12 and np.abs(part.astype(int) - whole).mean() < 2


@pytest.mark.parametrize(
    "height, width, size", [(40, 60, (16, 24)), (60, 40, (8, 24)), (50, 50, (24, 8)), (7, 90, (6, 8))]
)
def test_centre_crops_of_any_shape_show_the_middle(height, width, size):
    out = images.center_crop(picture(height, width), size)
    assert out.shape == (*size, 3)
    scale = max(size[0] / height, size[1] / width)
    for axis, (channel, side) in enumerate(((1, height), (0, width))):
        along = out[..., channel].mean(1 - axis)
        half = 0.5 / scale  # pixels of the picture, where the crop cannot be quite in the middle
        assert abs(along.mean() - 127.5) < max(3, 255 / side * (1 + half))
        shown = size[axis] / scale / side  # share of this side that is seen
        assert abs(np.ptp(along) - 255 * shown * (1 - 1 / size[axis])) < 255 * 1.5 / side + 3


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_random_crops_of_any_shape_are_stretched_to_it(kind):
    data = encode(picture(200, 300), kind)
    draws = np.full(images.CROP_DRAWS, 0.5)
    wide = images.random_resized_crop(data, (20, 40), draws, SCALE, RATIO)
    square = images.random_resized_crop(data, (40, 40), draws, SCALE, RATIO)
    assert wide.shape == (20, 40, 3)
    np.testing.assert_allclose(wide.astype(float), square.reshape(20, 2, 40, 3).mean(1), atol=6)


def test_a_part_drawn_once_is_cut_down_to_the_image():
    """facebookresearch/mae util/crop.py; the ten tries of others would reach for their second draw here."""
    draws = np.full(images.CROP_DRAWS, 0.25)
    draws[:2] = 1.0, 1.0  # the whole area, as wide as may be: wider than the image
    top, left, height, width = images.random_box(40, 60, draws, (0.5, 1.0), (0.5, 2.0), once=True)
    assert (height, width) == (round((40 * 60 / 2.0) ** 0.5), 60)
    assert (top, left) == (int(0.25 * (40 - height + 1)), 0)
    assert images.random_box(40, 60, draws, (0.5, 1.0), (0.5, 2.0))[2:] != (height, width)
    draws[:2] = 0.3, 0.5
    assert images.random_box(40, 60, draws, (0.1, 0.5), (0.5, 2.0), once=True) == images.random_box(
        40, 60, draws, (0.1, 0.5), (0.5, 2.0)
    )
