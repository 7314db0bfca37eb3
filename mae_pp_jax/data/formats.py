"""Formats of image files, told apart by their first bytes, and decoding with Pillow of those that need it.

OpenCV decodes JPEG and pictures without transparency in PNG and WebP. Pillow decodes what OpenCV reads wrongly (the
transparent colour of a GIF, alpha in AVIF, colours of 16-bit bitmaps) or not at all.
"""

import dataclasses
import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from mae_pp_jax.data import faults

MAX_PIXELS = 100_000_000  # 300 MB decoded; cameras go up to about this
# Files beyond MAX_PIXELS are refused with a message of our own, and damage is an error or harmless.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class Unreadable(faults.Unreadable):
    """The bytes are no image, or a damaged one. The message says what is wrong with them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
    """A format of files.

    Attributes:
      name: as people call it.
      pillow: the same as Pillow calls it; empty where it is not decoded.
      instead: what a user can do where it is not decoded.
    """

    name: str
    pillow: str = ""
    instead: str = ""


_CONVERT = "convert it to PNG or JPEG"
# (where the signature stands, the signature, the format); the first that fits.
_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", Format("PNG", "PNG")),
    (0, b"GIF87a", Format("GIF", "GIF")),
    (0, b"GIF89a", Format("GIF", "GIF")),
    (0, b"BM", Format("BMP", "BMP")),
    (8, b"WEBP", Format("WebP", "WEBP")),
    *((0, start, Format("TIFF", "TIFF")) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", Format("JPEG 2000", "JPEG2000")),
    (0, b"\xff\x4f\xff\x51", Format("JPEG 2000", "JPEG2000")),
    (4, b"ftypavi", Format("AVIF", "AVIF", "pip install --upgrade pillow")),
    *((4, b"ftyp" + brand, Format("HEIC", "HEIF", "pip install pillow-heif")) for brand in _HEIC_BRANDS),
    (0, b"\xff\x0a", Format("JPEG XL", "", _CONVERT)),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", Format("JPEG XL", "", _CONVERT)),
    (0, b"8BPS", Format("Photoshop file", "", _CONVERT)),
    (0, b"\0\0\1\0", Format("Windows icon", "", _CONVERT)),
    (0, b"v/1\x01", Format("OpenEXR", "", _CONVERT)),
    (0, b"%PDF", Format("PDF", "", _CONVERT)),
    (4, b"ftyp", Format("video or camera file", "", _CONVERT)),
    (0, b"PK\x03\x04", Format("zip archive", "", "unpack it")),
    (0, b"\x1f\x8b", Format("gzip file", "", "unpack it")),
    (0, b"version https://git-lfs", Format("pointer of Git LFS", "", "fetch the file by git lfs pull")),
)
_READ = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC or JPEG 2000"


def recognise(data: bytes) -> Format:
    """The format of a file that is no JPEG.

    Raises:
      Unreadable: none that is known.
    """
    for at, signature, found in _SIGNATURES:
        if data.startswith(signature, at):
            # "mif1" says that there is a still picture, of any codec; AVIF is named among the compatible brands.
            return _AVIF if found.name == "HEIC" and b"avif" in data[16:64] else found
    if not data:
        raise Unreadable("empty")
    if not any(data):
        raise Unreadable("all bytes are zero")
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in data[:4096].lower():
        return Format("SVG drawing", "", _CONVERT)
    if start.startswith((b"<!doctype html", b"<html")):
        return Format("web page", "", "download the picture again")
    raise Unreadable(f"no {_READ}; it begins with {data[:8]!r}")


_AVIF = next(found for _, _, found in _SIGNATURES if found.name == "AVIF")


def check_size(height: int, width: int) -> None:
    """Raises `Unreadable` where no picture, or one too large, has this size."""
    if not 0 < height * width <= MAX_PIXELS:
        raise Unreadable(f"{height:,} × {width:,} pixels in its header; read are 1 to {MAX_PIXELS:,}")


def decode(data: bytes, kind: Format) -> np.ndarray:
    """Decodes the first picture of a file with Pillow: uint8 [height, width, 3], upright, alpha composed over white.

    Raises:
      Unreadable: damaged, too large, or of a format that is not read here, which is named.
    """
    if not _available(kind):
        raise Unreadable(f"{kind.name}, which is not read here; {kind.instead}")
    try:
        with Image.open(io.BytesIO(data), formats=[kind.pillow]) as image:
            check_size(image.height, image.width)
            pixels = np.asarray(_flatten(_first_frame(image)))
        if kind.name == "GIF":
            _check_end(data)
        return pixels
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(f"more than {MAX_PIXELS:,} pixels in its header") from error
    except Exception as error:  # Pillow's readers raise what they like on damaged files, struct.error and KeyError too
        raise Unreadable(f"damaged {kind.name}") from error


def _available(kind: Format) -> bool:
    """Whether Pillow, or its plugin for HEIC, decodes a format."""
    if kind.pillow == "HEIF" and "HEIF" not in Image.OPEN:
        try:
            import pillow_heif  # an extra, which few need
        except ImportError:
            return False
        pillow_heif.register_heif_opener()
    Image.init()
    return kind.pillow in Image.OPEN


def _check_end(data: bytes) -> None:
    """Raises `Unreadable` for a GIF that ends early in a later frame, which Pillow does not look at (GIF89a, 15 to 27)."""
    at = 13 + _palette_bytes(data[10])
    try:
        while data[at] in b"!,":  # an extension, a frame; ";" ends the file
            at += 2 if data[at] == ord("!") else 11 + _palette_bytes(data[at + 9])
            while length := data[at]:
                at += 1 + length
            at += 1
    except IndexError as error:
        raise Unreadable(f"ends early, after {len(data):,} bytes") from error


def _palette_bytes(flags: int) -> int:
    """Bytes of the palette that follows a header of a GIF with these flags."""
    return 3 * (2 << (flags & 7)) if flags & 0x80 else 0


def _first_frame(image: Image.Image) -> Image.Image:
    """The picture, decoded and upright. A GIF's first frame may cover a part of it: the rest is white."""
    box = image.tile[0].extents if image.format == "GIF" and image.tile else None
    image.load()
    if box and box != (0, 0, *image.size):
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(_flatten(image.crop(box)), box)
        return canvas
    return ImageOps.exif_transpose(image)


def _flatten(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB.

    An alpha channel is composed over white, but for one that leaves nothing to see. A single transparent colour, as GIF
    has it, is the colour that it is, as in every reader that does without alpha.
    """
    transparency = image.info.get("transparency")
    levels = image.mode == "P" and isinstance(transparency, bytes) and bool(set(transparency) - {0, 255})
    if levels or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        if image.getextrema()[3] != (0, 0):
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode.startswith("I;16"):  # Pillow would cut values off at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    elif image.mode in ("I", "F"):
        raise Unreadable("pixels of 32 bits, whose range is not known; " + _CONVERT)
    image.info.pop("transparency", None)
    return image.convert("RGB")
