"""`embed`: features of images from a run or an imported checkpoint."""

import argparse
import concurrent.futures
import io
import itertools
import logging
import re
from collections.abc import Iterator

import jax
import numpy as np
import tqdm

from mae_pp_jax.core import console, hardware, partition, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.partition import MeshConfig
from mae_pp_jax.data import images as images_lib
from mae_pp_jax.data.decode import Unreadable
from mae_pp_jax.data.faults import Faults
from mae_pp_jax.models import positions
from mae_pp_jax.stages.shared import saved_encoder

log = logging.getLogger(__name__)

DESCRIPTION = """Writes one feature per image: an .npz file with `features` (float32 [images, width]) and `files` (their
names, in the same order), by the newest checkpoint of a run, trained here or imported. Images are resized to cover
the model's input and cut to their centre.

examples:
  python -m mae_pp_jax embed --workdir=runs/mae_wsp --images='photos/**/*.jpg' --out=features.npz
  python -m mae_pp_jax embed --workdir=runs/maws_h14 --images='photos/*' --out=f.npz --pool=mean --image_size=518"""


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "embed",
        help="write features of images",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a run, trained here or imported")
    parser.add_argument("--images", required=True, metavar="GLOB", help="image files; ** stands for any folders")
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="file to write")
    parser.add_argument(
        "--pool",
        choices=("cls", "mean", "projection"),
        help="class token, mean of the patches, or the projection of a CLIP model (default: as the run's model)",
    )
    parser.add_argument(
        "--image_size",
        default="",
        metavar="PIXELS",
        help="another input, 518 or 192x256 (height x width); resizes positions",
    )
    parser.add_argument("--resize", choices=tuple(positions.METHODS), help="whose way of resizing positions")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="images at once (default: 64)")
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="leave out images that cannot be read, and say so"
    )
    parser.set_defaults(run=run)


def run(args) -> None:
    features, files = embed(
        args.workdir,
        args.images,
        args.out,
        pool=args.pool,
        image_size=parse_size(args.image_size),
        resize=args.resize,
        batch=args.batch,
        skip_unreadable=args.skip_unreadable,
    )
    print(f"{args.out}: features of {len(files):,} images, {features.shape[1]} numbers each")


def embed(
    workdir: str,
    pattern: str,
    out: str,
    *,
    pool: str | None = None,
    image_size: tuple[int, int] | None = None,
    resize: str | None = None,
    batch: int = 64,
    skip_unreadable: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """Features of image files, also written as .npz.

    Args:
      workdir: folder of a run.
      pattern: glob of the files; they are taken in alphabetical order.
      out: the .npz file.
      pool: "cls", "mean" (of the patch tokens, after `norm` where the model has one), "projection", or None for the
        model's own.
      image_size: (height, width) of the input in pixels, None for the run's.
      resize: whose way of resizing positions (`positions.METHODS`), None for that of the imported format, or MAE's.
      batch: images at once, over all devices.
      skip_unreadable: whether to go on without images that cannot be read.

    Returns:
      (float32 [images, width], names of the files).

    Raises:
      UserError: no run there, no image, an unreadable one, or a pooling that the model does not have.
    """
    hardware.enable_compilation_cache()
    target = storage.path(out, "--out")
    if target.suffix != ".npz":
        raise UserError(f"--out: {out} must end in .npz")
    if batch < 1:
        raise UserError(f"--batch: must be at least 1, got {batch}")
    storage.check_writable(target, "--out")
    files = [name for name in storage.matching(pattern) if storage.is_file(name)]
    if not files and storage.is_dir(pattern):
        raise UserError(
            f"--images: {pattern} is a folder; give its pictures, as in '{storage.Path(pattern) / '*.jpg'}'"
        )
    if not files:
        raise UserError(f"--images: no file matches {pattern!r}; quote it, so that the shell leaves it alone")
    mesh = partition.make_mesh(MeshConfig(rules="replicate"))
    encoder = saved_encoder.load(storage.path(workdir), mesh, pool=pool, image_size=image_size, resize=resize)
    batch = -(-batch // mesh.size) * mesh.size
    found, used = [], []
    with (
        jax.set_mesh(mesh),
        tqdm.tqdm(total=len(files), desc="embed", unit=" images", disable=not console.on_terminal()) as bar,
    ):
        for names, pixels in _batches(files, encoder.image_size, batch, skip_unreadable):
            found.append(
                np.asarray(encoder.features(partition.to_global({"image": pixels}, mesh)["image"]))[: len(names)]
            )
            used += names
            bar.update(len(names))
    if not used:
        raise UserError(f"--images: none of the {len(files):,} files could be read")
    features = np.concatenate(found)
    content = io.BytesIO()
    np.savez(content, features=features, files=np.array(used))
    with storage.writing(target, "--out"):
        storage.make_folder(target.parent)
    storage.write_whole(target, content.getvalue(), "--out")
    return features, used


def parse_size(text: str) -> tuple[int, int] | None:
    """(height, width) of "518" or "192x256"; None of "" for the run's own.

    Raises:
      UserError: it is neither.
    """
    if not text:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not match:
        raise UserError(f"--image_size: {text!r} is no size; give pixels as 224, or as HEIGHTxWIDTH such as 192x256")
    return int(match[1]), int(match[2] or match[1])


def _batches(
    files: list[str], size: tuple[int, int], batch: int, skip_unreadable: bool
) -> Iterator[tuple[list[str], np.ndarray]]:
    """(names of up to `batch` files, uint8 [batch, height, width, 3] padded with black), decoded a few batches ahead."""

    faults = Faults()

    def read(name: str) -> np.ndarray | None:
        try:
            image = images_lib.center_crop(storage.read_bytes(name), size)
            faults.warn(lambda: name)
            return image
        except (OSError, Unreadable) as error:
            if not skip_unreadable:
                raise UserError(f"--images: {name} is no readable image; remove it or add --skip_unreadable") from error
            log.warning("%s is no readable image: skipped", name)
            return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting: list[tuple[str, concurrent.futures.Future]] = []
        rest = iter(files)
        try:
            while True:
                waiting += [
                    (name, pool.submit(read, name)) for name in itertools.islice(rest, 3 * batch - len(waiting))
                ]
                if not waiting:
                    return
                ready, waiting = waiting[:batch], waiting[batch:]
                decoded = [(name, image.result()) for name, image in ready]
                good = [(name, image) for name, image in decoded if image is not None]
                pixels = np.zeros((batch, *size, 3), np.uint8)
                for i, (_, image) in enumerate(good):
                    pixels[i] = image
                yield [name for name, _ in good], pixels
        finally:
            pool.shutdown(cancel_futures=True)
