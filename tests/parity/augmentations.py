"""timm's augmentations on draws of our choice, and the generator of what is stored of them.

  python tests/parity/augmentations.py            writes augmentations.npz again (needs the extra [torch])

`augmentations.npz` holds `image` uint8 [height, width, 3] and what timm makes of it by every operation:
`NAME/INCREASING/LEVEL/NEGATIVE/CUBIC` for the sets that change more (1) or as they like (0) as the magnitude LEVEL grows,
with NEGATIVE sign and CUBIC interpolation.
"""

import contextlib
import itertools
import pathlib
from statistics import NormalDist
from unittest import mock

import numpy as np

from mae_pp_jax.data import randaugment

STORED = pathlib.Path(__file__).parent / "augmentations.npz"
FILL = (124, 116, 104)
LEVELS = (2.3, 9.4)
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
ENHANCING = ("Color", "Contrast", "Brightness", "Sharpness")
BITS = ("Posterize", "Solarize")
PLAIN = ("AutoContrast", "Equalize", "Invert")


def theirs(name: str, increasing: bool) -> str:
    """timm's name of an operation."""
    if name in ("TranslateX", "TranslateY"):
        return f"{name}Rel"
    return f"{name}Increasing" if increasing and name in (*ENHANCING, *BITS) else name


def cases(levels=LEVELS):
    """(name, increasing, level, negative, cubic) of everything that differs."""
    for name in randaugment.NAMES:
        yield from itertools.product(
            [name],
            (1, 0) if name in (*ENHANCING, *BITS) else (1,),
            levels[:1] if name in PLAIN else levels,
            (0, 1) if name in (*ENHANCING, *GEOMETRIC) else (0,),
            (0, 1) if name in GEOMETRIC else (0,),
        )


def ours(image: np.ndarray, name: str, increasing: int, level: float, negative: int, cubic: int) -> np.ndarray:
    policy = randaugment.RandAugment(increasing=bool(increasing))
    argument = policy.argument(name, level, bool(negative))
    return randaugment.apply(name, image, argument, cubic=bool(cubic), fill=FILL)


def limit(name: str, cubic: int) -> tuple[int, float]:
    """Largest difference in levels of 255 at one place, and on average, that ours may have from timm's."""
    if name in (*PLAIN, *BITS, "SolarizeAdd", "Contrast", "Brightness"):
        return 0, 0.0
    if name in ("Rotate", "ShearX", "ShearY"):
        return (30, 1.6) if cubic else (1, 0.6)
    return 1, 0.5


def timm_operation(image: np.ndarray, name: str, increasing: int, level: float, negative: int, cubic: int):
    from PIL import Image
    from timm.data import auto_augment

    kinds = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    operation = auto_augment.AugmentOp(
        theirs(name, bool(increasing)), prob=1.0, magnitude=level, hparams=dict(img_mean=FILL, interpolation=kinds)
    )
    with mock.patch.object(auto_augment.random, "random", lambda: 0.9 if negative else 0.1):
        return np.asarray(operation(Image.fromarray(image)))


class Draws:
    """Stands for the modules `random` and `np.random` in timm's RandAugment: gives it the numbers that ours gets."""

    def __init__(self, draws: np.ndarray):
        self._draws = draws.reshape(-1, randaugment.DRAWS)
        self._layer, self._asked = 0, 0

    def choose(self, operations, number, replace, p):
        assert replace and p is None and number == len(self._draws)
        return [self._wrapped(operations, layer) for layer in range(number)]

    def _wrapped(self, operations, layer):
        def call(image):
            self._layer, self._asked = layer, 0
            return operations[int(self._draws[layer, 0] * len(operations))](image)

        return call

    def random(self):
        self._asked += 1
        return self._draws[self._layer, {1: 1, 2: 3}[self._asked]]

    def gauss(self, mean, deviation):
        return NormalDist(mean, deviation).inv_cdf(self._draws[self._layer, 2])

    def uniform(self, low, high):
        return low + (high - low) * self._draws[self._layer, 2]

    def choice(self, values):
        return values[int(self._draws[self._layer, 4] * len(values))]


def timm_policy(text: str, image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """What timm's RandAugment makes of an image where it draws these numbers."""
    from PIL import Image
    from timm.data import auto_augment

    transform, given = auto_augment.rand_augment_transform(text, dict(img_mean=FILL)), Draws(draws)
    with contextlib.ExitStack() as patched:
        patched.enter_context(mock.patch.object(auto_augment, "random", given))
        patched.enter_context(mock.patch.object(auto_augment.np.random, "choice", given.choose))
        return np.asarray(transform(Image.fromarray(image)))


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Colours that change smoothly, with some noise: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-6, 6, (3, 3))]
    smooth = 120 + 90 * np.stack(waves, -1) + rng.normal(0, 6, (height, width, 3))
    return np.clip(smooth, 8, 240).astype(np.uint8)


def main() -> None:
    from tests.parity import references

    references.define_torchvision_operators()
    image = picture(20, 28, 0)
    made = {"/".join(map(str, case)): timm_operation(image, *case) for case in cases()}
    np.savez_compressed(STORED, image=image, **made)


if __name__ == "__main__":
    main()
