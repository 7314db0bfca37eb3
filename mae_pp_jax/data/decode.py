"""Encoded files to pixels with OpenCV or Pillow (`formats`), and parts of a JPEG with libjpeg-turbo.

A file is recognised by its first bytes, not by its name. Its size is read from the header, and an absurd one is refused
before anything is allocated. A file that ends early is refused: OpenCV reports it for all kinds but JPEG, whose missing
part it fills with grey, so the end of a JPEG is looked for here.
"""

import contextlib
import dataclasses
import struct

import cv2
import numpy as np
import simplejpeg

from mae_pp_jax.data import decoder_warnings, formats, jpeg_restarts

# The readers are threads already; OpenCV's own threads inside each of them would only compete.
cv2.setNumThreads(0)
# It warns on stderr of files that it cannot read; `Unreadable` says so.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

MAX_PIXELS, Unreadable = formats.MAX_PIXELS, formats.Unreadable
# A progressive JPEG repeats its picture in scans, about ten; a file made of thousands takes minutes to decode.
MAX_SCANS = 200
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
# Markers of JPEG (ITU T.81, table B.1), each after a byte 0xFF.
_END, _SCAN, _INTERVAL, _EXIF, _PROGRESSIVE = 0xD9, 0xDA, 0xDD, 0xE1, 0xC2
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_LARGEST_UNIT = 32  # rows that are coded together, at most
_ORIENTATION = 0x0112  # EXIF tag
_OS2_HEADER = 12  # bytes of the header of OS/2 1.x and Windows 2 bitmaps


@dataclasses.dataclass(frozen=True, slots=True)
class Jpeg:
    """An encoded JPEG whose header is read.

    Attributes:
      data: the file.
      height: of the picture as it is to be seen, in pixels.
      width: likewise.
      turned: whether it is stored in another orientation.
      frame: where in `data` the frame header stands, which holds the stored height and width.
      layout: where the rest stands, for a picture coded in one scan.
    """

    data: bytes
    height: int
    width: int
    turned: bool
    frame: int
    layout: jpeg_restarts.Layout | None

    def pixels(self, reduce: int = 1) -> np.ndarray:
        """Decodes to uint8 [height, width, 3], each side divided by `reduce` (1, 2, 4 or 8) and rounded up.

        Reducing leaves out the high frequencies while decoding: it saves time and averages neighbouring pixels.
        """
        return _decode(self.data, cv2.IMREAD_COLOR_RGB | _REDUCED[reduce])

    def part(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Decodes a part: uint8 [height, width, 3], the very pixels that the whole picture has there.

        Little else is decoded where restart markers allow it, and never what lies more than a few rows below.
        """
        if not self.turned:
            data, y, x = self._around((top, left, height, width)) or (self._with_rows(top + height), 0, 0)
            # A combination of resolutions that TurboJPEG has no name for is an error; OpenCV asks libjpeg itself.
            with contextlib.suppress(ValueError):
                # Not strict, for it would complain about the rest of the file.
                pixels = simplejpeg.decode_jpeg(data, strict=False)
                return pixels[top - y : top - y + height, left - x : left - x + width]
        return self.pixels()[top : top + height, left : left + width]

    def reduced_part(
        self, top: int, left: int, height: int, width: int, reduce: int
    ) -> tuple[np.ndarray, tuple[float, float, float, float]]:
        """Decodes a part, and what is around it, as `pixels(reduce)` does, and says where the part is in the result.

        Returns:
          uint8 [height, width, 3], and (top, left, height, width) in its pixels, which need not be whole numbers.
        """
        data, y, x = self._around((top, left, height, width)) or (self.data, 0, 0)
        pixels = _decode(data, cv2.IMREAD_COLOR_RGB | _REDUCED[reduce])
        return pixels, ((top - y) / reduce, (left - x) / reduce, height / reduce, width / reduce)

    def _around(self, box: tuple[int, int, int, int]) -> tuple[bytearray, int, int] | None:
        """A JPEG of what is around a box, and the row and column at which it begins, where restart markers allow it."""
        return None if self.turned or not self.layout else jpeg_restarts.cut(self.data, self.layout, box)

    def _with_rows(self, rows: int) -> bytes:
        """The file with a header that ends the picture after `rows` rows or a few more: the decoder is done earlier.

        A few more, since the last rows lack their neighbours below.
        """
        rows = min((rows // _LARGEST_UNIT + 1) * _LARGEST_UNIT, self.height)
        at = self.frame + 5
        return b"".join((self.data[:at], rows.to_bytes(2, "big"), self.data[at + 2 :]))


def decode(data: bytes) -> np.ndarray:
    """Decodes a file to uint8 [height, width, 3], RGB, upright by its EXIF orientation.

    Greyscale, CMYK and 16-bit images become 8-bit RGB; an alpha channel is composed over white; an animation gives its
    first frame. Read are JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 and, with pillow-heif, HEIC.

    Raises:
      Unreadable: no image, a kind that is not read, damaged, or more than `MAX_PIXELS`.
    """
    return read_jpeg(data).pixels() if is_jpeg(data) else _decode_other(data)


def is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def read_jpeg(data: bytes) -> Jpeg:
    """Reads the header of a JPEG, and looks for its end.

    Raises:
      Unreadable: damaged, or more than `MAX_PIXELS`.
    """
    at, frame, orientation, interval = 2, 0, 1, 0
    try:
        while (marker := data[at + 1]) != _SCAN:
            if data[at] != 0xFF:
                raise Unreadable(f"no segment of a JPEG at byte {at:,}")
            if marker == 0xFF:  # segments may be preceded by any number of these
                at += 1
                continue
            (length,) = struct.unpack_from(">H", data, at + 2)
            if marker in _FRAMES:
                frame = at
            elif marker == _INTERVAL:
                (interval,) = struct.unpack_from(">H", data, at + 4)
            elif marker == _EXIF and data[at + 4 : at + 10] == b"Exif\0\0":
                orientation = _exif_orientation(data[at + 10 : at + 2 + length])
            at += 2 + length
        size = struct.unpack_from(">HH", data, frame + 5) if frame else (0, 0)
        end = data.rfind(bytes([0xFF, _END]), at)
        layout = jpeg_restarts.read_layout(data, frame, at, end, interval)
    except (IndexError, struct.error) as error:
        raise Unreadable(f"ends in its header, after {len(data):,} bytes") from error
    formats.check_size(*size)
    if end < 0:
        raise Unreadable(f"ends early, after {len(data):,} bytes")
    if data[frame + 1] == _PROGRESSIVE and data.count(bytes([0xFF, _SCAN]), at) > MAX_SCANS:
        raise Unreadable(f"more than {MAX_SCANS} scans")
    height, width = reversed(size) if orientation > 4 else size
    return Jpeg(data, height, width, orientation > 1, frame, layout)


def _decode_other(data: bytes) -> np.ndarray:
    """Decodes what is no JPEG: OpenCV where it is as right as Pillow and faster."""
    kind = formats.recognise(data)
    try:
        if kind.name in _SIZES:
            formats.check_size(*_SIZES[kind.name](data))
        plain = kind.name == "PNG" and not _png_alpha(data) or kind.name == "WebP" and not _webp_alpha(data)
    except struct.error as error:
        raise Unreadable(f"ends in its header, after {len(data)} bytes") from error
    return _decode(data, cv2.IMREAD_COLOR_RGB) if plain else formats.decode(data, kind)


def _decode(data: bytes, flags: int) -> np.ndarray:
    try:
        with decoder_warnings.collected():
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise Unreadable("damaged") from error
    if image is None:
        decoder_warnings.take()
        raise Unreadable("damaged")
    return image


def _png_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a PNG."""
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _png_alpha(data: bytes) -> bool:
    """Whether a PNG has an alpha channel, or a palette whose colours may have one."""
    colours = data[25:26]
    return colours in (b"\4", b"\6") or colours == b"\3" and 0 <= data.find(b"tRNS") < data.find(b"IDAT")


def _gif_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a GIF."""
    width, height = struct.unpack_from("<HH", data, 6)
    return height, width


def _bmp_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a bitmap. Its header tells by its length whether sides have 2 bytes (OS/2) or 4."""
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == _OS2_HEADER else "<ii", data, 18)
    return abs(height), abs(width)  # a negative height: top row first


def _webp_size(data: bytes) -> tuple[int, int]:
    """(height, width) of a WebP, from its first chunk (Google's container specification)."""
    kind = data[12:16]
    if kind == b"VP8X":  # with alpha, EXIF or frames: sides less 1 in 3 bytes each
        low, high = struct.unpack_from("<IH", data, 24)
        return 1 + (low >> 24 | high << 8), 1 + (low & 0xFFFFFF)
    if kind == b"VP8L":  # lossless: sides less 1 in 14 bits each
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)  # lossy: 14 bits each under 2 bits of scaling
    return height & 0x3FFF, width & 0x3FFF


def _webp_alpha(data: bytes) -> bool:
    """Whether a WebP says that it has alpha."""
    return data[12:16] == b"VP8X" and bool(data[20] & 0x10) or data[12:16] == b"VP8L" and bool(data[24] & 0x10)


def _exif_orientation(tiff: bytes) -> int:
    """The orientation in the first directory of EXIF's TIFF block (TIFF 6.0, section 2); 1 if it makes no sense."""
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for index in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * index)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # the picture itself may be whole
    return 1


# What is known of a size before a decoder sees the file.
_SIZES = {"PNG": _png_size, "GIF": _gif_size, "BMP": _bmp_size, "WebP": _webp_size}
