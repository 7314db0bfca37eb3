"""`data show`: a picture of the training images of a config, as the model will see them."""

import argparse
import itertools

import cv2
import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mae_pp_jax.commands import runs
from mae_pp_jax.commands.arguments import overrides as parse_overrides
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import state, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.stages import registry

HELP = "write a picture of training images as the model will see them"
DESCRIPTION = """\
Writes a sheet of 64 training images of a config after all augmentation, on the host and on the device, with the crops,
masks and mixtures that a training of this seed begins with: a row for each of the first batches, from its beginning and
its end. Captions are classes with their shares, or hashtags; of masked images the whole ones stand on the left.

--config.KEY=VALUE changes keys, as for train."""
EXAMPLE = "python -m mae_pp_jax data show --config=configs/classify/digits.py --config.mixup=0.8 --out=sheet.png"

ROWS, COLUMNS = 8, 8
_SIDES = (112, 256)  # pixels between which images are shown; others are enlarged or reduced
_GAP, _LINE, _LINES = 6, 14, 2  # pixels around images, and of a line of text; lines of a caption


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `data show`."""
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:args]", help="configs/STAGE/RECIPE.py[:name=value,…]")
    add("--out", default="sheet.png", metavar="FILE.png", help="the picture (default: sheet.png)")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace, rest: list[str]) -> None:
    """Carries out `data show`.

    Raises:
      UserError: the config does not fit, its data cannot be read, or the picture cannot be written.
    """
    path = storage.path(args.out, "--out").expanduser()
    if path.suffix != ".png":
        raise UserError(f"--out: {args.out} must end in .png")
    storage.check_writable(path, "--out")
    stage = registry.create(runs.resolved(config_lib.load_file(args.config), parse_overrides(rest)), runs.locate)
    pictures, captions = first_images(stage, ROWS * COLUMNS, COLUMNS)
    picture = sheet(list(pictures.values()), captions)
    _, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    storage.write_whole(path, content.tobytes(), "--out")
    height, width = stage.image_size
    titles = f", {' and '.join(pictures)} side by side" if len(pictures) > 1 else ""
    print(f"{path}: {len(next(iter(pictures.values())))} training images of {height}×{width} pixels{titles}")


def first_images(stage, count: int, of_each: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Images of the first training batches of a stage on images, with all augmentation.

    Args:
      stage: an `ImageStage`.
      count: how many in all.
      of_each: how many of a batch; half of them are its first and half its last, which are partners of one another where
        a batch is mixed with itself in reverse.

    Returns:
      (title → uint8 [count, height, width, 3], captions, or [] where there are none).
    """
    batch = stage.config.global_batch
    half = next(n for n in range(of_each // 2, 0, -1) if batch % n == 0)
    whole = batch <= of_each or stage.model_batch != batch  # independent models have batches of their own
    rows = np.arange(batch) if whole else np.r_[:half, batch - half : batch]
    streams, reader = [], stage.reader
    for stage.reader in [reader] if whole else [(0, batch // half), (batch // half - 1, batch // half)]:
        streams.append(stage.train_batches(0))
    stage.reader = reader
    found, captions = [], []
    for step in itertools.count():
        parts = [next(stream) for stream in streams]
        examples = {name: np.concatenate([part[name] for part in parts])[:of_each] for name in parts[0]}
        keys = jax.random.split(state.key_of_step(jax.random.key(stage.config.seed), step), batch)[rows][:of_each]
        pictures, texts = stage.sheet(examples, keys)
        found.append({title: np.asarray(images) for title, images in pictures.items()})
        captions += texts
        if sum(len(next(iter(images.values()))) for images in found) >= count:
            break
    joined = {title: np.concatenate([images[title] for images in found])[:count] for title in found[0]}
    return joined, captions[:count]


def sheet(pictures: list[np.ndarray], captions: list[str]) -> np.ndarray:
    """Images in rows of `COLUMNS`, each with its caption below it: uint8 [height, width, 3].

    Args:
      pictures: uint8 [count, height, width, 3] each; those of the same example stand side by side.
      captions: one per example, or [].
    """
    least, most = _SIDES
    sides = pictures[0].shape[1:3]
    scale = -(-least // min(sides)) if min(sides) < least else min(1.0, most / max(sides))
    height, width = (max(1, round(side * scale)) for side in sides)
    method = cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA
    across, down = len(pictures) * width + _GAP, height + _GAP + (_LINES * _LINE if captions else 0)
    rows = -(-len(pictures[0]) // COLUMNS)
    canvas = np.full((rows * down + _GAP, COLUMNS * across + _GAP, 3), 255, np.uint8)
    places = [(_GAP + place // COLUMNS * down, _GAP + place % COLUMNS * across) for place in range(len(pictures[0]))]
    for number, images in enumerate(pictures):
        for (top, left), image in zip(places, images):
            left += number * width
            canvas[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=method)
    drawn = Image.fromarray(canvas)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=_LINE - 3)
    for (top, left), caption in zip(places, captions):
        for number, text in enumerate(_wrapped(caption, lambda text: font.getlength(text) <= across - _GAP)):
            pen.text((left, top + height + number * _LINE), text, fill=(40, 40, 40), font=font)
    return np.asarray(drawn)


def _wrapped(text: str, fits) -> list[str]:
    """A text in at most `_LINES` lines that fit, the last one cut off if need be."""
    lines, words = [], text.split()
    while words and len(lines) < _LINES:
        taken = next((n for n in range(len(words), 1, -1) if fits(" ".join(words[:n]))), 1)
        last = len(lines) == _LINES - 1
        line, words = " ".join(words if last else words[:taken]), words[taken:]
        while not fits(line):
            line = line[:-2] + "…"
        lines.append(line)
    return lines
