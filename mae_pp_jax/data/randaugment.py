"""RandAugment (Cubuk et al. 2019) on one image, as timm's `rand_augment_transform` has it, by OpenCV instead of Pillow.

A policy is written as in timm: `rand-m9-mstd0.5-inc1`. Its operations, the arguments that a magnitude comes to, and
which of them are chosen with which probability are timm's. Against Pillow on the same draws, point operations differ
by at most one level of 255; geometric ones by half a level on average with bilinear interpolation, for Pillow cuts
fractions of a level off and OpenCV rounds, and by more along sharp edges with bicubic, for Pillow's cubic overshoots
more (coefficient -1, OpenCV's -0.75).

Randomness comes as `draws`, numbers uniform in [0, 1) that belong to one position of the stream of training images.
"""

import dataclasses
import functools
import math
import re
from statistics import NormalDist

import cv2
import numpy as np

from mae_pp_jax.core.errors import UserError

DRAWS = 5  # of a layer: which operation, whether it acts, its magnitude, its sign, its interpolation
_DENOMINATOR = 10.0  # magnitude at which an argument is at the end of its range
_UNIFORM = 100.0  # deviation of magnitudes above which they are uniform
_LEVELS = np.arange(256)
_CUT = -0.5 + 2**-8  # added, makes OpenCV's rounding cut fractions off as Pillow does
_PAD = 3  # pixels, more than interpolation looks at beyond the border


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """A policy: `layers` operations in turn, drawn anew for each image, with replacement.

    Attributes:
      magnitude: mean magnitude; at 10 arguments are at the end of their range.
      layers: operations drawn for an image.
      probability: that a drawn operation acts.
      deviation: standard deviation of the magnitude; infinite: uniform between 0 and `magnitude`.
      highest: magnitudes are cut at 0 and here.
      increasing: whether all operations change an image the more the larger the magnitude. If not, Posterize and Solarize
        change it the less, and the factors of Color, Contrast, Brightness and Sharpness run from 0.1 to 1.9.
    """

    magnitude: float = 10.0
    layers: int = 2
    probability: float = 0.5
    deviation: float = 0.0
    highest: float = _DENOMINATOR
    increasing: bool = False

    @property
    def draws(self) -> int:
        """Random numbers that one image takes."""
        return DRAWS * self.layers

    def __call__(self, image: np.ndarray, draws: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
        """Another image of the same size: uint8 [height, width, 3].

        Args:
          image: uint8 [height, width, 3], RGB; it stays as it is.
          draws: [self.draws] or more, uniform in [0, 1).
          fill: colour of what geometric operations move in from outside.
        """
        draws = draws.tolist()
        for first in range(0, self.draws, DRAWS):
            which, acts, magnitude, sign, cubic = draws[first : first + DRAWS]
            if acts <= self.probability:
                name = NAMES[int(which * len(NAMES))]
                level = self.level(magnitude)
                image = apply(name, image, self.argument(name, level, sign > 0.5), cubic=cubic >= 0.5, fill=fill)
        return image

    def level(self, draw: float) -> float:
        """The magnitude of one operation, from a number uniform in [0, 1)."""
        if self.deviation == math.inf:
            magnitude = draw * self.magnitude
        elif self.deviation:
            magnitude = NormalDist(self.magnitude, self.deviation).inv_cdf(max(draw, 2.0**-54))
        else:
            magnitude = self.magnitude
        return max(0.0, min(magnitude, self.highest))

    def argument(self, name: str, level: float, negative: bool) -> float:
        """What an operation is given for a magnitude; `negative`: the sign of those that have one. 0 if it takes nothing."""
        share, sign = level / _DENOMINATOR, -1 if negative else 1
        if name in _SIGNED:
            return sign * share * _SIGNED[name]
        if name in _ENHANCE:
            return max(0.1, 1.0 + sign * share * 0.9) if self.increasing else share * 1.8 + 0.1
        if name == "Posterize":
            return 4 - int(share * 4) if self.increasing else int(share * 4)
        if name == "Solarize":
            threshold = min(256, int(share * 256))
            return 256 - threshold if self.increasing else threshold
        return min(128, int(share * 110)) if name == "SolarizeAdd" else 0


# Argument of a geometric operation at magnitude 10: degrees; pixels per pixel; share of the side.
_SIGNED = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45}
_KEYS = {"m": int, "n": int, "p": float, "mstd": float, "mmax": int, "inc": int}


def parse(text: str) -> RandAugment:
    """The policy that a text such as "rand-m9-n2-p0.5-mstd0.5-mmax10-inc1" stands for; all but "rand" may be left out.

    Raises:
      UserError: it cannot be read.
    """

    def wrong(why: str) -> UserError:
        return UserError(
            f"data.randaugment: {text!r}: {why}; write it as rand-m9-mstd0.5-inc1: m magnitude, mstd its deviation, inc1 "
            "for increasing operations, and n operations (2), p probability of each (0.5), mmax largest magnitude (10)"
        )

    first, *parts = text.split("-")
    if first != "rand":
        raise wrong("a policy begins with 'rand'")
    found = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(\.\d+)?)", part)
        if not match or match[1] not in _KEYS:
            raise wrong(f"'{part}' is no part of a policy")
        name, kind = match[1], _KEYS[match[1]]
        if name in found:
            raise wrong(f"{name} stands there twice")
        if kind is int and match[3]:
            raise wrong(f"{name} takes a whole number")
        found[name] = kind(match[2])
    if found.get("inc", 1) != 1:
        # timm takes every inc for inc1, even inc0.
        raise wrong("inc is 1, or left out")
    if not 0 <= found.get("p", 0.5) <= 1:
        raise wrong("p is a probability")
    if not found.get("n", 2):
        raise wrong("n is 1 or more")
    deviation = found.get("mstd", 0.0)
    return RandAugment(
        magnitude=float(found.get("m", _DENOMINATOR)),
        layers=found.get("n", 2),
        probability=found.get("p", 0.5),
        deviation=math.inf if deviation > _UNIFORM else deviation,
        highest=float(found.get("mmax", 0) or _DENOMINATOR),
        increasing="inc" in found,
    )


def apply(
    name: str, image: np.ndarray, argument: float = 0, *, cubic: bool = False, fill: tuple[int, ...] = (128, 128, 128)
) -> np.ndarray:
    """One operation on an image.

    Args:
      name: one of `NAMES`.
      image: uint8 [height, width, 3], RGB.
      argument: as `RandAugment.argument` gives it.
      cubic: whether geometric operations interpolate bicubically, else bilinearly.
      fill: colour of what they move in.
    """
    if name in ("TranslateX", "TranslateY"):
        axis = int(name == "TranslateX")
        return _translate(image, axis, argument * image.shape[axis], cubic, fill)
    if name in _SIGNED:
        return _warp(image, _matrix(name, argument, *image.shape[:2]), cubic, fill)
    return _OPERATIONS[name](image, argument)


def _translate(image: np.ndarray, axis: int, pixels: float, cubic: bool, fill: tuple[int, ...]) -> np.ndarray:
    """Moves an image by a number of pixels, which need not be whole, to the left or upwards."""
    side, first = image.shape[axis], math.floor(pixels)
    part = pixels - first
    # Places in the result whose place in the image, measured between its borders, is inside.
    start, stop = (min(max(math.ceil(end - pixels - 0.5), 0), side) for end in (0, side))
    out = _plain(*image.shape[:2], fill).copy()
    if start >= stop:
        return out
    pads = [_PAD, _PAD, 0, 0] if axis == 0 else [0, 0, _PAD, _PAD]
    padded = cv2.copyMakeBorder(image, *pads, cv2.BORDER_REPLICATE)
    kernel = np.array([_cubic(part) if cubic else [0, 1 - part, part, 0]], np.float32)
    low = start + first + _PAD - 1  # the first that is looked at: one before the place itself
    if axis == 0:
        moved = cv2.filter2D(padded[low : low + stop - start + 3], -1, kernel.T, anchor=(0, 1), delta=_CUT)
        out[start:stop] = moved[1 : 1 + stop - start]
    else:
        moved = cv2.filter2D(padded[:, low : low + stop - start + 3], -1, kernel, anchor=(1, 0), delta=_CUT)
        out[:, start:stop] = moved[:, 1 : 1 + stop - start]
    return out


def _cubic(part: float) -> list[float]:
    """Weights of four neighbours in Pillow's cubic interpolation at `part` of the way from the second to the third."""
    x = part
    return [x * (x * (2 - x) - 1), x * x * (x - 2) + 1, x * (1 + x * (1 - x)), x * x * (x - 1)]


@functools.lru_cache(8)
def _plain(height: int, width: int, fill: tuple[int, ...]) -> np.ndarray:
    """An image of one colour; it is shared and must not be changed."""
    return np.full((height, width, 3), fill, np.uint8)


def _matrix(name: str, argument: float, height: int, width: int) -> np.ndarray:
    """Place in the result (x, y, 1) → place in the image, where the upper left corner of the first pixel is (0, 0)."""
    if name == "ShearX":
        return np.array([[1.0, argument, 0], [0, 1, 0]])
    if name == "ShearY":
        return np.array([[1.0, 0, 0], [argument, 1, 0]])
    # Counter-clockwise about the centre.
    cos, sin = math.cos(math.radians(argument)), math.sin(math.radians(argument))
    x, y = width / 2, height / 2
    return np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])


def _warp(image: np.ndarray, matrix: np.ndarray, cubic: bool, fill: tuple[int, ...]) -> np.ndarray:
    """Interpolates an image at the places that `matrix` gives; those outside of it become `fill`, with a hard edge."""
    height, width = image.shape[:2]
    # The outermost pixels are repeated by hand: OpenCV is slow where it repeats them itself.
    padded = cv2.copyMakeBorder(image, _PAD, _PAD, _PAD, _PAD, cv2.BORDER_REPLICATE)
    # OpenCV counts from the centres of pixels.
    offset = matrix[:, 2] + matrix[:, :2].sum(1) / 2 - 0.5 + _PAD
    moved = cv2.warpAffine(
        padded,
        np.column_stack([matrix[:, :2], offset]),
        (width, height),
        flags=(cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )
    return cv2.copyTo(_plain(height, width, fill), _outside(matrix, height, width), moved)


def _outside(matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mask [height, width], 255 where `matrix` leads out of the image: each row of it is inside between two columns."""
    rows = np.arange(height) + 0.5
    start, stop = np.zeros(height), np.full(height, width)
    for (a, b, c), side in zip(matrix.tolist(), (width, height)):
        rest = b * rows + c  # inside: 0 <= a · (column + 0.5) + rest < side
        if a:
            ends = np.ceil((np.array([0, side])[:, None] - rest) / a - 0.5)
            start, stop = np.maximum(start, ends.min(0)), np.minimum(stop, ends.max(0))
        else:
            stop = np.where((rest >= 0) & (rest < side), stop, 0)
    columns = np.arange(width, dtype=np.int32)
    start, stop = (np.clip(end, 0, width).astype(np.int32)[:, None] for end in (start, stop))
    return ((columns < start) | (columns >= stop)).view(np.uint8) * np.uint8(255)


def _table(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Replaces each level by levels[level], or of each channel by levels[level, channel]; cut to whole levels in 0 … 255."""
    table = np.clip(levels, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None] if table.ndim == 2 else table)


def _auto_contrast(image, _):
    """Stretches each channel to 0 … 255."""
    low, high = image.min(0).min(0).astype(int), image.max(0).max(0).astype(int)
    flat = high <= low
    scale = 255.0 / np.where(flat, 1, high - low)
    levels = _LEVELS[:, None] * scale + -low * scale
    return _table(image, np.where(flat, _LEVELS[:, None], levels))


def _equalize(image, _):
    """Gives each channel a flat histogram."""
    levels = np.empty((256, 3), np.int64)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        occur = np.flatnonzero(counts)
        step = (counts.sum() - counts[occur[-1]]) // 255
        levels[:, channel] = (step // 2 + np.cumsum(counts) - counts) // step if step else _LEVELS
    return _table(image, levels)


def _posterize(image, bits):
    return _table(image, _LEVELS & ~(2 ** max(0, 8 - int(bits)) - 1))


def _solarize(image, threshold):
    return _table(image, np.where(_LEVELS < threshold, _LEVELS, 255 - _LEVELS))


def _solarize_add(image, add):
    return _table(image, np.where(_LEVELS < 128, _LEVELS + int(add), _LEVELS))


def _blend(image, level: float, factor: float) -> np.ndarray:
    """level + factor · (image - level), in Pillow's precision."""
    return _table(image, np.float32(level) + np.float32(factor) * (_LEVELS - level).astype(np.float32))


def _contrast(image, factor):
    red, green, blue, _ = cv2.mean(image)
    return _blend(image, int((19595 * red + 38470 * green + 7471 * blue) / 65536 + 0.5), factor)


def _brightness(image, factor):
    return _blend(image, 0, factor)


def _color(image, factor):
    """Away from or towards the grey image."""
    grey = np.array([[19595, 38470, 7471]]) / 65536
    matrix = factor * np.eye(3) + (1 - factor) * grey
    return cv2.transform(image, np.column_stack([matrix, np.full(3, _CUT)]))


def _sharpness(image, factor):
    """Away from or towards a smoothed image; the outermost pixels stay."""
    kernel = np.full((3, 3), (1 - factor) / 13)
    kernel[1, 1] = factor + (1 - factor) * 5 / 13
    out = cv2.filter2D(image, -1, kernel.astype(np.float32), delta=_CUT)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        out[edge] = image[edge]
    return out


_ENHANCE = {"Color": _color, "Contrast": _contrast, "Brightness": _brightness, "Sharpness": _sharpness}
_OPERATIONS = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": lambda image, _: cv2.bitwise_not(image),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    **_ENHANCE,
}
# In timm's order.
NAMES = (*list(_OPERATIONS)[:3], "Rotate", *list(_OPERATIONS)[3:], "ShearX", "ShearY", "TranslateX", "TranslateY")
