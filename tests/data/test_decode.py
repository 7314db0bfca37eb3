"""Every kind of file that people have is decoded rightly or refused with the reason, never a crash."""

import struct
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
from PIL import Image

from mae_pp_jax.data import decode, formats
from tests.conftest import ROOT
from tests.data.pictures import encode, noise, picture, whole_files


@pytest.mark.parametrize("kind, tolerance", [("png", 0), ("bmp", 0), ("webp", 12), ("jpeg", 12)])
def test_rgb(kind, tolerance):
    out = decode.decode(encode(picture(), kind, quality=95))
    assert out.dtype == np.uint8 and out.shape == (40, 60, 3)
    assert np.abs(out.astype(int) - picture()).max() <= tolerance


def test_greyscale_and_16_bit():
    grey = picture()[..., 0]
    expected = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(decode.decode(encode(grey, "png")), expected)
    np.testing.assert_array_equal(decode.decode(encode(grey.astype(np.uint16) * 257, "png")), expected)
    assert np.abs(decode.decode(encode(grey, "jpeg", quality=98)).astype(int) - expected).mean() < 2
    np.testing.assert_array_equal(decode.decode(encode(grey.astype(np.uint16) * 257, "tiff")), expected)


def see_through(*opacity) -> np.ndarray:
    """The picture with an alpha channel, uint8 [40, 60, 4], whose columns have these opacities in turn."""
    alpha = np.broadcast_to(np.resize(np.array(opacity, np.uint8), 60), (40, 60))
    return np.dstack([picture(), alpha])


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "avif"])
def test_alpha_is_composed_over_white(kind):
    image = see_through(0, 128, 255)
    expected = picture() * (image[..., 3:] / 255) + 255.0 - image[..., 3:]
    options = (
        dict(lossless=True) if kind == "webp" else dict(quality=100, subsampling="4:4:4") if kind == "avif" else {}
    )
    out = decode.decode(encode(image, kind, **options))
    assert np.abs(out[:, 0].astype(int) - 255).max() <= (4 if kind == "avif" else 0)
    assert np.abs(out - expected).max() <= (12 if kind == "avif" else 1)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_alpha_that_leaves_nothing_to_see_is_ignored(kind):
    out = decode.decode(encode(see_through(0), kind, lossless=True, exact=True))
    np.testing.assert_array_equal(out, picture())


def test_a_palette_with_levels_of_opacity_is_composed_over_white():
    index = Image.fromarray(np.tile(np.uint8([0, 1, 2]), (40, 20)), "P")
    index.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 250])
    out = decode.decode(encode(index, "png", transparency=bytes([0, 102, 255])))
    assert out[0, :3].tolist() == [[255, 255, 255], [233, 153, 153], [0, 0, 250]]


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_one_transparent_colour_is_the_colour_that_it_is(kind):
    """Whatever background the header of a GIF names."""
    index = Image.fromarray(np.tile(np.uint8([0, 1, 2]), (40, 20)), "P")
    index.putpalette([255, 250, 245, 200, 0, 0, 0, 0, 250])
    out = decode.decode(encode(index, kind, transparency=0, background=1))
    assert out[0, :3].tolist() == [[255, 250, 245], [200, 0, 0], [0, 0, 250]]


@pytest.mark.parametrize("transparent", [{}, {"transparency": 1}])
def test_what_the_first_frame_of_a_gif_leaves_open_is_white(transparent):
    index = Image.fromarray(np.ones((20, 30), np.uint8), "P")
    index.putpalette([9, 9, 9, 200, 0, 0])
    data = bytearray(encode(index, "gif", **transparent))
    frame = data.index(b"," + struct.pack("<HHHH", 0, 0, 30, 20))
    struct.pack_into("<HH", data, 6, 60, 40)
    struct.pack_into("<HH", data, frame + 1, 15, 10)
    expected = np.full((40, 60, 3), 255)
    expected[10:30, 15:45] = 200, 0, 0
    np.testing.assert_array_equal(decode.decode(bytes(data)), expected)


def bitmap(bits: int, body: bytes, *, header: int = 40, compression: int = 0, palette: bytes = b"", masks: bytes = b""):
    """A BMP of 60 × 40 pixels; a header of 12 bytes is that of OS/2 1.x."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, 60, 40, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", header, 60, 40, 1, bits, compression, len(body), 0, 0, 0, 0)
    info = info.ljust(header, b"\0") + masks + palette
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + len(body), 0, 0, 14 + len(info)) + info + body


@pytest.mark.parametrize("header", [12, 40, 64])
def test_bitmaps_with_old_headers(header):
    body = picture()[::-1, :, ::-1].tobytes()
    np.testing.assert_array_equal(decode.decode(bitmap(24, body, header=header)), picture())


@pytest.mark.parametrize("bits, code", [(8, 1), (4, 2)])
def test_run_length_coded_bitmaps(bits, code):
    rows = (bytes([30, 0x11 * (bits == 4) or 1, 30, 0x22 if bits == 4 else 2]) + b"\0\0") * 40 + b"\0\1"
    palette = bytes([0, 0, 0, 0, 30, 20, 10, 0, 60, 50, 40, 0]).ljust(4 << bits, b"\0")
    out = decode.decode(bitmap(bits, rows, compression=code, palette=palette))
    assert out.shape == (40, 60, 3) and out[0, 0].tolist() == [10, 20, 30] and out[39, 59].tolist() == [40, 50, 60]


@pytest.mark.parametrize("masks", [b"", struct.pack("<III", 0xF800, 0x07E0, 0x001F)], ids=["555", "565"])
def test_bitmaps_of_16_bits(masks):
    red, green, blue = (picture()[::-1, :, i].astype(np.uint16) for i in range(3))
    value = (
        (red >> 3) << 11 | (green >> 2) << 5 | blue >> 3 if masks else (red >> 3) << 10 | (green >> 3) << 5 | blue >> 3
    )
    out = decode.decode(bitmap(16, value.astype("<u2").tobytes(), compression=3 if masks else 0, masks=masks))
    assert np.abs(out.astype(int) - picture()).max() <= 8


@pytest.mark.parametrize("kind, tolerance", [("tiff", 0), ("jpeg2000", 0), ("avif", 12)])
def test_formats_that_pillow_decodes(kind, tolerance):
    out = decode.decode(encode(picture(), kind, quality=95) if kind == "avif" else encode(picture(), kind))
    assert np.abs(out.astype(int) - picture()).max() <= tolerance


def test_heic():
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    out = decode.decode(encode(picture(), "heif", quality=95))
    assert np.abs(out.astype(int) - picture()).mean() < 6


def test_heic_without_its_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(decode.Unreadable, match="HEIC, which is not read here; pip install pillow-heif"):
        decode.decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))


def test_cmyk_jpeg():
    out = decode.decode(encode(Image.fromarray(picture()).convert("CMYK"), "jpeg", quality=98))
    assert np.abs(out.astype(int) - picture()).mean() < 4


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_gives_its_first_frame(kind):
    first, then = Image.fromarray(picture()), Image.fromarray(noise(0))
    data = encode(first, kind, save_all=True, append_images=[then], duration=100, lossless=True)
    still = decode.decode(encode(first, kind, lossless=True))
    np.testing.assert_array_equal(decode.decode(data), still)
    assert np.abs(still.astype(int) - picture()).mean() < 12  # a GIF has 256 colours


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = decode.decode(encode(picture(), kind, quality=98, exif=exif))
    ways = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90,
    }
    expected = ways[orientation](picture())
    assert out.shape == expected.shape
    assert np.abs(out.astype(int) - expected).mean() < 4
    if kind == "jpeg":
        jpeg = decode.read_jpeg(encode(picture(), kind, exif=exif))
        assert (jpeg.height, jpeg.width) == expected.shape[:2]
        assert jpeg.pixels(2).shape == ((expected.shape[0] + 1) // 2, (expected.shape[1] + 1) // 2, 3)


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_reduced_jpeg_is_the_average_of_its_pixels(reduce):
    data = encode(picture(79, 121), "jpeg", quality=95)
    full, small = decode.decode(data), decode.read_jpeg(data).pixels(reduce)
    assert small.shape == (-(-79 // reduce), -(-121 // reduce), 3)
    rows, columns = 79 // reduce, 121 // reduce
    blocks = full[: rows * reduce, : columns * reduce].reshape(rows, reduce, columns, reduce, 3).mean((1, 3))
    assert np.abs(small[:rows, :columns] - blocks).mean() < 1.5


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"restart_marker_blocks": 3},  # divides rows of 27 and of 54 units
        {"restart_marker_blocks": 4},  # divides neither
        {"restart_marker_rows": 1},
        {"restart_marker_rows": 2},
        {"restart_marker_blocks": 3, "progressive": True},
    ],
    ids=str,
)
def test_a_part_of_a_jpeg_has_the_pixels_of_the_whole(options, subsampling):
    data = encode(cv2.resize(noise(0), (430, 300)), "jpeg", subsampling=subsampling, **options)
    full, jpeg = decode.decode(data), decode.read_jpeg(data)
    boxes = [(0, 0, 300, 430), (0, 0, 1, 1), (299, 429, 1, 1), (31, 47, 1, 200), (32, 48, 100, 1), (150, 200, 100, 100)]
    for top, left, height, width in boxes:
        part = jpeg.part(top, left, height, width)
        np.testing.assert_array_equal(part, full[top : top + height, left : left + width])


@pytest.mark.parametrize("kind", ["L", "CMYK"])
def test_a_part_of_a_grey_or_cmyk_jpeg_has_the_pixels_of_the_whole(kind):
    image = Image.fromarray(cv2.resize(noise(0), (192, 96))).convert(kind)
    data = encode(image, "jpeg", restart_marker_blocks=4)
    np.testing.assert_array_equal(decode.read_jpeg(data).part(20, 70, 50, 60), decode.decode(data)[20:70, 70:130])


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_a_reduced_part_of_a_jpeg_has_the_pixels_of_the_whole(reduce, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(cv2.resize(noise(0), (640, 480)), "jpeg", restart_marker_blocks=5, exif=exif)
    whole = decode.read_jpeg(data).pixels(reduce)
    pixels, (top, left, height, width) = decode.read_jpeg(data).reduced_part(160, 240, 160, 80, reduce)
    assert (height, width) == (160 / reduce, 80 / reduce)
    assert (pixels.shape == whole.shape) == (orientation == 6)  # a turned picture is decoded as a whole
    box = slice(int(top), int(top + height)), slice(int(left), int(left + width))
    expected = whole[160 // reduce :, 240 // reduce :][: 160 // reduce, : 80 // reduce]
    np.testing.assert_array_equal(pixels[box], expected)


def test_restart_markers_spare_what_is_outside_the_part():
    """The bytes of other intervals may be anything."""
    data = encode(cv2.resize(noise(0), (640, 640)), "jpeg", restart_marker_blocks=8)  # 5 intervals of 128 pixels a row
    expected = decode.decode(data)[300:400, 300:350]
    jpeg = decode.read_jpeg(data)
    markers = [i for i in range(jpeg.layout.scan, len(data)) if data[i] == 0xFF and data[i + 1] in range(0xD0, 0xD8)]
    spoilt = bytearray(data)
    kept = {row * 5 + 2 for row in range(18, 26)}
    for index, (start, end) in enumerate(zip([jpeg.layout.scan - 2, *markers], [*markers, jpeg.layout.end])):
        if index not in kept:
            spoilt[start + 2 : end] = bytes(end - start - 2)
    assert np.abs(decode.decode(bytes(spoilt))[:128].astype(int) - decode.decode(data)[:128]).mean() > 20
    np.testing.assert_array_equal(decode.read_jpeg(bytes(spoilt)).part(300, 300, 100, 50), expected)


def test_a_jpeg_that_lacks_a_restart_marker_is_decoded_as_a_whole():
    data = encode(cv2.resize(noise(0), (640, 640)), "jpeg", restart_marker_blocks=8)
    at = data.index(b"\xff\xd3", decode.read_jpeg(data).layout.scan)
    data = data[:at] + b"\x00\x00" + data[at + 2 :]
    np.testing.assert_array_equal(decode.read_jpeg(data).part(0, 300, 600, 300), decode.decode(data)[:600, 300:600])


def _with_size(data: bytes, kind: str, side: int) -> bytes:
    """The same file with another size in its header."""
    changed = bytearray(data)
    if kind == "jpeg":
        struct.pack_into(">HH", changed, data.index(b"\xff\xc0") + 5, side, side)
    elif kind == "png":
        struct.pack_into(">II", changed, 16, side, side)
    elif kind == "gif":
        struct.pack_into("<HH", changed, 6, side, side)
    elif kind == "bmp":
        struct.pack_into("<ii", changed, 18, side, -side)
    return bytes(changed)


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp"])
def test_a_decompression_bomb_is_refused_by_its_header(kind):
    data = encode(picture(), kind)
    with pytest.raises(decode.Unreadable, match="60,000 × 60,000 pixels"):
        decode.decode(_with_size(data, kind, 60_000))
    with pytest.raises(decode.Unreadable, match="0 × 0 pixels|not|Not"):
        decode.decode(_with_size(data, kind, 0))


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_is_refused_by_its_header(lossless, monkeypatch):
    wide = encode(picture(50, 300), "webp", lossless=lossless)
    animated = encode(
        picture(50, 300), "webp", lossless=lossless, save_all=True, append_images=[Image.fromarray(picture(50, 300))]
    )
    monkeypatch.setattr(formats, "MAX_PIXELS", 50 * 300)
    assert decode.decode(wide).shape == decode.decode(animated).shape == (50, 300, 3)
    monkeypatch.setattr(formats, "MAX_PIXELS", 50 * 300 - 1)
    for data in (wide, animated):
        with pytest.raises(decode.Unreadable, match="50 × 300 pixels"):
            decode.decode(data)


@pytest.mark.parametrize("name", whole_files())
def test_a_file_that_ends_early_is_refused_wherever_it_ends(name):
    data = whole_files()[name]
    assert decode.decode(data).shape == (40, 60, 3)
    for share in (0.02, 0.1, 0.3, 0.6, 0.9, 0.97):
        with pytest.raises(decode.Unreadable):
            decode.decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (bytes(500), "all bytes are zero"),
        (b"words", "begins with"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>not found</html>", "web page"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xff\x0a" + bytes(9), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(9), "JPEG XL"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200), "damaged AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(200), "damaged AVIF"),
        (b"II*\0" + bytes(99), "damaged TIFF"),
        (b"\0\0\0\x18ftypisom" + bytes(99), "video"),
        (b"PK\3\4" + bytes(99), "zip"),
        (encode(Image.fromarray(np.ones((20, 20), np.float32)), "tiff"), "32 bits"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(data, reason):
    with pytest.raises(decode.Unreadable, match=reason):
        decode.decode(data)


def test_bytes_between_segments_do_no_harm():
    data = encode(picture(), "jpeg")
    np.testing.assert_array_equal(decode.decode(data[:-2] + b"made with" + data[-2:]), decode.decode(data))


def test_a_jpeg_of_endless_scans_is_refused():
    data = encode(picture(), "jpeg", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(decode.Unreadable, match="scans"):
        decode.decode(data[:last] + data[last:-2] * 300 + data[-2:])


def test_a_thousand_mutated_files_neither_crash_nor_hang():
    """In a process of its own, for a decoder that crashes takes its process along."""
    program = textwrap.dedent("""
        import sys
        import numpy as np
        from mae_pp_jax.data import decode, images
        from tests.data.pictures import whole_files

        rng = np.random.default_rng(0)
        wholes, outcomes = list(whole_files().values()), {"read": 0, "refused": 0}
        for number in range(1000):
            data = bytearray(wholes[number % len(wholes)])
            for _ in range(rng.integers(1, 20)):
                kind, at = rng.integers(4), int(rng.integers(len(data)))
                end = at + int(rng.integers(1, 40))
                if kind == 0:
                    data[at] = rng.integers(256)
                elif kind == 1:
                    data[at : at + 4] = bytes([0xFF] * 4)
                elif kind == 2 and len(data) > 100:
                    del data[at:end]
                else:
                    data[at:at] = data[at:end]
            try:
                image = images.random_resized_crop(bytes(data), (8, 8), rng.random(images.CROP_DRAWS), (0.2, 1), (0.75, 1.3))
                assert image.shape == (8, 8, 3) and image.dtype == np.uint8
                outcomes["read"] += 1
            except decode.Unreadable as fault:
                assert str(fault) and "\\n" not in str(fault)
                outcomes["refused"] += 1
        print(outcomes["read"], outcomes["refused"])
    """)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    read, refused = map(int, done.stdout.split())
    assert read + refused == 1000 and refused > 300 and read > 20
