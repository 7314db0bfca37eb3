"""Decoding, cropping and resizing of one image on the CPU with OpenCV. Images are uint8 [height, width, 3], RGB.

Crops take their randomness as `draws`, numbers uniform in [0, 1) that belong to one position of the stream of
training images, so that a crop does not depend on the thread or host that makes it.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

from mae_pp_jax.core.errors import UserError

# The readers are threads already; OpenCV's own threads inside each of them would only compete.
cv2.setNumThreads(0)
# It warns on stderr of files that it cannot read; `decode` says so itself.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_TRIES = 10
CROP_DRAWS = 2 * _TRIES + 4  # numbers one crop may use; a multiple of 4 (see pipeline.py)


def decode(data: bytes, describe: Callable[[], str]) -> np.ndarray:
    """Decodes an encoded image to uint8 [height, width, 3], upright by its EXIF orientation.

    Greyscale, CMYK and 16-bit images become 8-bit RGB; an alpha channel is dropped.

    Args:
      data: the encoded file (JPEG, PNG, WebP, BMP).
      describe: where the image comes from, asked only for the error.

    Raises:
      UserError: the bytes are no readable image.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"data: {describe()} is not a readable image ({len(data)} bytes); remove or replace it")
    return image


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes the shorter side to `size` and cuts out the centre: uint8 [size, size, 3]."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    short = min(height, width)
    height, width = (max(size, round(side * size / short)) for side in (height, width))
    image = _resize(image, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def random_resized_crop(
    image: np.ndarray, size: int, draws: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Cuts out a random part and resizes it to [size, size, 3].

    Area uniform in `scale` of the image's, aspect ratio log-uniform in `ratio`; ten tries to fit it into the image,
    then the centre, as torchvision's RandomResizedCrop does.

    Args:
      image: uint8 [height, width, 3].
      size: side of the result in pixels.
      draws: [CROP_DRAWS], uniform in [0, 1).
      scale: smallest and largest share of the area.
      ratio: smallest and largest width / height.
    """
    height, width = image.shape[:2]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    draws = draws.tolist()  # Python floats: ten times faster than NumPy scalars here
    for attempt in range(_TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[2 * attempt])
        aspect = math.exp(low + (high - low) * draws[2 * attempt + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(draws[2 * _TRIES] * (height - h + 1))
            left = int(draws[2 * _TRIES + 1] * (width - w + 1))
            break
    else:
        w = min(width, max(1, round(height * ratio[1])))
        h = min(height, max(1, round(width / ratio[0])))
        top, left = (height - h) // 2, (width - w) // 2
    return _resize(image[top : top + h, left : left + w], size, size)


def shift_crop(image: np.ndarray, size: int, draws: np.ndarray, shift: int) -> np.ndarray:
    """The centre crop of side `size`, moved by up to `shift` pixels each way with zeros coming in.

    Args:
      image: uint8 [height, width, 3].
      size: side of the result in pixels.
      draws: [CROP_DRAWS], uniform in [0, 1).
      shift: largest move in pixels; each whole number from -shift to shift is equally likely.
    """
    image = center_crop(image, size)
    padded = cv2.copyMakeBorder(image, shift, shift, shift, shift, cv2.BORDER_CONSTANT)
    top, left = int(draws[0] * (2 * shift + 1)), int(draws[1] * (2 * shift + 1))
    return padded[top : top + size, left : left + size]


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes; averages areas when shrinking (no aliasing), bicubic when enlarging."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] * image.shape[1] > height * width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
