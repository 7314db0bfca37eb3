"""Checks an image by decoding it as training will, and encodes it for the dataset."""

import dataclasses
import re

import cv2
import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import decode, jpeg_restarts
from mae_pp_jax.data.building.items import SMALL, UNREADABLE, LeftOut

_RESIZED_QUALITY = 95  # of a JPEG that had to be made smaller and is otherwise kept
_JPEG_UNIT = 16  # pixels that OpenCV codes together along a row


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Attributes:
      codec: `keep` leaves JPEG and PNG files as they are and turns other kinds into PNG; `restarts` does so too, and
        gives JPEG files restart markers without loss; `jpeg` and `png` encode anew.
      quality: of JPEG, 1 to 100.
      max_side: longer sides are reduced to this many pixels; 0 for no limit.
      min_side: images with a shorter side are left out.
    """

    codec: str = "keep"
    quality: int = 90
    max_side: int = 0
    min_side: int = 16

    @classmethod
    def parse(cls, text: str, *, max_side: int, min_side: int) -> "Encoding":
        """Reads `keep`, `restarts`, `png`, `jpeg` or `jpeg:QUALITY`.

        Raises:
          UserError: anything else, sides that leave no image, or no jpegtran for `restarts`.
        """
        match = re.fullmatch(r"(keep|restarts|png)|(jpeg)(?::(\d+))?", text)
        quality = int(match[3] or cls.quality) if match else 0
        if not 1 <= quality <= 100:
            raise UserError(f"--encode: '{text}' is not keep, restarts, png or jpeg:QUALITY with a quality of 1 to 100")
        if text == "restarts" and not jpeg_restarts.available():
            raise UserError(
                "--encode=restarts: needs the program jpegtran, which was not found; install it "
                "(Debian, Ubuntu: apt install libjpeg-turbo-progs; macOS: brew install jpeg-turbo) or use --encode=keep"
            )
        if min_side < 1:
            raise UserError(f"--min_side: must be at least 1, got {min_side}")
        if max_side and max_side < min_side:
            raise UserError(f"--max_side: {max_side} is less than --min_side={min_side}; 0 means no limit")
        return cls(match[1] or match[2], quality, max_side, min_side)


def prepare(data: bytes, encoding: Encoding) -> tuple[bytes, np.ndarray]:
    """The file to store, and its pixels, uint8 [height, width, 3].

    Raises:
      LeftOut: damaged or no image (`decode.decode` says what), or too small.
    """
    try:
        pixels = decode.decode(data)
    except decode.Unreadable as error:
        raise LeftOut(UNREADABLE, str(error)) from error
    height, width = pixels.shape[:2]
    if min(height, width) < encoding.min_side:
        raise LeftOut(SMALL, f"{height} × {width} pixels")
    shrunk = bool(encoding.max_side) and max(height, width) > encoding.max_side
    if shrunk:
        scale = encoding.max_side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    if encoding.codec in ("png", "jpeg"):
        return _encode(pixels, encoding.codec, encoding.quality), pixels
    if shrunk:
        return _encode(pixels, "jpeg" if decode.is_jpeg(data) else "png", _RESIZED_QUALITY), pixels
    if decode.is_jpeg(data):
        return _with_restarts(data, pixels) if encoding.codec == "restarts" else data, pixels
    return data if data.startswith(b"\x89PNG") else _encode(pixels, "png"), pixels


def _encode(pixels: np.ndarray, codec: str, quality: int = 0) -> bytes:
    """A PNG, or a JPEG with restart markers."""
    options = []
    if codec == "jpeg":
        units = jpeg_restarts.interval(pixels.shape[1], _JPEG_UNIT)
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, units]
    _, content = cv2.imencode(f".{codec}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return content.tobytes()


def _with_restarts(data: bytes, pixels: np.ndarray) -> bytes:
    """A JPEG with restart markers and the same pixels; where that cannot be had, the file as it is."""
    written = jpeg_restarts.insert(data, decode.read_jpeg(data).frame)
    return written if written and np.array_equal(decode.decode(written), pixels) else data


def looks(pixels: np.ndarray) -> tuple[int, int]:
    """Two hashes (64 bits each) that near-identical pictures share.

    They are "dHash" along rows and along columns: signs of differences between neighbours on an 8 × 8 grid of grey,
    insensitive to size, encoding, brightness and most recolouring. 0 for a picture without any difference.
    """
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    rows = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    columns = cv2.resize(grey, (8, 9), interpolation=cv2.INTER_AREA).astype(np.int16)
    signs = np.diff(rows, axis=1) > 0, np.diff(columns, axis=0) > 0
    return tuple(int.from_bytes(np.packbits(s).tobytes(), "big") for s in signs)
