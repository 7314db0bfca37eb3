"""Crops and resizing of one image on the CPU. Images are uint8 [height, width, 3], RGB, or the bytes of a file.

Crops take their randomness as `draws`, numbers uniform in [0, 1) that belong to one position of the stream of
training images, so that a crop does not depend on the thread or host that makes it. A crop is chosen from the size in
the file's header. A JPEG that is much larger than needed is then decoded at a half, a quarter or an eighth of its size,
of another one as little beside the crop as its coding allows.
"""

import math

import cv2
import numpy as np
from PIL import Image

from mae_pp_jax.data import decode

_TRIES = 10
CROP_DRAWS = 2 * _TRIES + 2  # numbers one crop may use
_MOST_ENLARGED = 64  # times the pixels of a crop that may be made to cut it out
_BESIDE = 4  # pixels around a part, more than interpolation looks at
_REDUCTIONS = (8, 4, 2)  # that a JPEG is decoded at without loss of speed
# Ways to resize that are Pillow's own; its filters grow with the reduction, so that nothing aliases.
_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
RESIZES = ("area", *_PILLOW)


def pixels(image: bytes | np.ndarray) -> np.ndarray:
    """All pixels of an image that may still be encoded: uint8 [height, width, 3].

    Raises:
      decode.Unreadable: as `decode.decode`.
    """
    return image if isinstance(image, np.ndarray) else decode.decode(image)


def center_crop(
    image: bytes | np.ndarray, size: tuple[int, int], share: float = 1.0, resize: str = "area"
) -> np.ndarray:
    """Resizes an image so that it just covers `size` / `share` and cuts out the centre: uint8 [*size, 3].

    Decodes in full, for evaluation and embedding.

    Args:
      image: a file, or uint8 [height, width, 3].
      size: (height, width) of the result in pixels.
      share: part of the shorter side that is kept, above 0 and at most 1; timm's crop_pct.
      resize: one of RESIZES. `area` averages areas (OpenCV). The others are Pillow's filters, with the longer side and
        the place of the crop rounded as torchvision's Resize and CenterCrop round them: the very pixels of published
        evaluations.

    Raises:
      decode.Unreadable: as `decode.decode`.
    """
    image = pixels(image)
    target = [max(side, int(side / share)) for side in size]  # whole pixels downwards, as MAE's and timm's transforms
    if image.shape[:2] == tuple(target) == size:
        return image
    height, width = image.shape[:2]
    # The side that is shorter for what is wanted decides.
    to, short = (target[0], height) if target[0] * width >= target[1] * height else (target[1], width)
    whole = round if resize == "area" else int  # of the longer side, with torchvision downwards
    resized = [max(least, whole(to * side / short)) for side, least in zip((height, width), target)]
    if to > short and math.prod(resized) > _MOST_ENLARGED * math.prod(size):
        return _enlarged_centre(image, size, to / short)
    image = _resize(image, *resized, resize)
    # Half a pixel goes downwards, with torchvision to the even place.
    half = round if resize != "area" else math.floor
    top, left = (half((side - wanted) / 2) for side, wanted in zip(resized, size))
    return image[top : top + size[0], left : left + size[1]]


def _enlarged_centre(image: np.ndarray, size: tuple[int, int], factor: float) -> np.ndarray:
    """The centre of an image, enlarged by a factor, [*size, 3]; nothing beside it is enlarged."""
    box, cut = [], []
    for side, wanted in zip(image.shape, size):
        start = max(0, math.floor((side - wanted / factor) / 2) - _BESIDE)
        cut.append(slice(start, side - start))
        box.append((side - wanted / factor) / 2 - start)
    return _resize_part(image[*cut], (*box, *(wanted / factor for wanted in size)), size, cv2.INTER_CUBIC)


def squeeze(image: bytes | np.ndarray, size: tuple[int, int], resize: str = "area") -> np.ndarray:
    """Resizes a file or uint8 [height, width, 3] to uint8 [*size, 3] whatever its shape; as `center_crop` else."""
    return _resize(pixels(image), *size, resize)


def without_border(image: bytes | np.ndarray, border: int) -> np.ndarray:
    """Cuts `border` pixels off each side of a file or of uint8 [height, width, 3].

    Raises:
      decode.Unreadable: as `decode.decode`, or nothing would be left.
    """
    image = pixels(image)
    if min(image.shape[:2]) <= 2 * border:
        raise decode.Unreadable(f"{image.shape[0]}×{image.shape[1]} pixels are no more than a border of {border}")
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def random_resized_crop(
    image: bytes | np.ndarray,
    size: tuple[int, int],
    draws: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    once: bool = False,
) -> np.ndarray:
    """Cuts out a random part and resizes it to [*size, 3].

    Area uniform in `scale` of the image's, aspect ratio log-uniform in `ratio`; ten tries to fit it into the image,
    then the centre, as torchvision's RandomResizedCrop does, or one try (`once`). Resized bilinearly, after halving as long as both sides
    are at least twice `size`: on ImageNet photographs 1 to 3 levels of 255 from Pillow's bicubic filter, on average.

    Args:
      image: a file, or uint8 [height, width, 3].
      size: (height, width) of the result in pixels.
      draws: [CROP_DRAWS] or more, uniform in [0, 1).
      scale: smallest and largest share of the area.
      ratio: smallest and largest width / height.
      once: whether the first draw is taken, cut down to the image where it does not fit (BYOL; MAE's linear probe).
    """
    if isinstance(image, bytes) and decode.is_jpeg(image):
        jpeg = decode.read_jpeg(image)
        box = random_box(jpeg.height, jpeg.width, draws, scale, ratio, once)
        reduce = next((r for r in _REDUCTIONS if box[2] >= r * size[0] and box[3] >= r * size[1]), 1)
        if reduce > 1:
            return _resize_part(*jpeg.reduced_part(*box, reduce), size)
        part = jpeg.part(*box)
    else:
        image = pixels(image)
        top, left, height, width = random_box(*image.shape[:2], draws, scale, ratio, once)
        part = image[top : top + height, left : left + width]
    return _resize_fast(part, *size)


def random_box(
    height: int,
    width: int,
    draws: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    once: bool = False,
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part of an image of this size; see `random_resized_crop`."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    draws = draws.tolist()  # Python floats: ten times faster than NumPy scalars here
    for attempt in range(_TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[2 * attempt])
        aspect = math.exp(low + (high - low) * draws[2 * attempt + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if once:
            w, h = min(max(w, 1), width), min(max(h, 1), height)
        if 0 < w <= width and 0 < h <= height:
            return int(draws[2 * _TRIES] * (height - h + 1)), int(draws[2 * _TRIES + 1] * (width - w + 1)), h, w
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def shift_crop(image: bytes | np.ndarray, size: tuple[int, int], draws: np.ndarray, shift: int) -> np.ndarray:
    """The centre crop of `size`, moved by up to `shift` pixels each way with zeros coming in.

    Args:
      image: a file, or uint8 [height, width, 3].
      size: (height, width) of the result in pixels.
      draws: [CROP_DRAWS] or more, uniform in [0, 1).
      shift: largest move in pixels; each whole number from -shift to shift is equally likely.
    """
    image = center_crop(image, size)
    padded = cv2.copyMakeBorder(image, shift, shift, shift, shift, cv2.BORDER_CONSTANT)
    top, left = int(draws[0] * (2 * shift + 1)), int(draws[1] * (2 * shift + 1))
    return padded[top : top + size[0], left : left + size[1]]


def _resize(image: np.ndarray, height: int, width: int, resize: str) -> np.ndarray:
    """Resizes by one of RESIZES; `area` averages areas when shrinking (no aliasing), bicubic when enlarging."""
    if image.shape[:2] == (height, width):
        return image
    if resize != "area":
        return np.asarray(Image.fromarray(image).resize((width, height), _PILLOW[resize]))
    shrinks = image.shape[0] * image.shape[1] > height * width
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _resize_fast(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes bilinearly, after halving each side as long as it is at least twice what is wanted.

    A quarter of the time that averaging areas takes.
    """
    while image.shape[0] >= 2 * height or image.shape[1] >= 2 * width:
        # Bilinear interpolation midway between two pixels is their average.
        halves = [-(-side // 2) if side >= 2 * to else side for side, to in zip(image.shape, (height, width))]
        image = cv2.resize(image, halves[::-1], interpolation=cv2.INTER_LINEAR)
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def _resize_part(
    image: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int], method: int = cv2.INTER_LINEAR
) -> np.ndarray:
    """Cuts out (top, left, height, width), which need not be whole pixels, and interpolates it to [*size, 3]."""
    top, left, height, width = box
    y, x = height / size[0], width / size[1]
    inverse = np.array([[x, 0, left + (x - 1) / 2], [0, y, top + (y - 1) / 2]])
    flags = method | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, inverse, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
