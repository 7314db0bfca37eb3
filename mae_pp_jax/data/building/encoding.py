"""Checks an image by decoding it as training will, and encodes it for the dataset."""

import dataclasses
import re

import cv2
import numpy as np

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import decode
from mae_pp_jax.data.building.items import SMALL, UNREADABLE, LeftOut

_RESIZED_QUALITY = 95  # of a JPEG that had to be made smaller and is otherwise kept


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How images are stored.

    Attributes:
      codec: `keep` leaves JPEG and PNG files as they are and turns other kinds into PNG; `jpeg` and `png` encode anew.
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
        """Reads `keep`, `png`, `jpeg` or `jpeg:QUALITY`.

        Raises:
          UserError: anything else, or sides that leave no image.
        """
        match = re.fullmatch(r"(keep|png)|(jpeg)(?::(\d+))?", text)
        quality = int(match[3] or cls.quality) if match else 0
        if not 1 <= quality <= 100:
            raise UserError(f"--encode: '{text}' is not keep, png or jpeg:QUALITY with a quality of 1 to 100")
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
    if encoding.codec == "keep":
        if not shrunk and (decode.is_jpeg(data) or data.startswith(b"\x89PNG")):
            return data, pixels
        codec, quality = ("jpeg", _RESIZED_QUALITY) if decode.is_jpeg(data) else ("png", 0)
    else:
        codec, quality = encoding.codec, encoding.quality
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if codec == "jpeg" else []
    _, content = cv2.imencode(f".{codec}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    return content.tobytes(), pixels


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
