"""`embed`: features of images from a run or an imported checkpoint."""

import argparse
import io
import logging
import re
from collections.abc import Sequence

import jax
import numpy as np
import tqdm

from mae_pp_jax.commands import arguments, runs
from mae_pp_jax.core import console, hardware, partition, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.partition import MeshConfig
from mae_pp_jax.data import images as images_lib
from mae_pp_jax.data import picture_files
from mae_pp_jax.models import positions
from mae_pp_jax.stages.shared import saved_encoder

log = logging.getLogger(__name__)

DESCRIPTION = """Writes one feature per image: an .npz file with `features` (float32 [images, width]) and `files` (their
names, in the same order), by the newest checkpoint of a run, trained here or imported. Images are resized to cover
the model's input and cut to their centre.

examples:
  python -m mae_pp_jax embed --workdir=runs/mae_wsp --images=photos --out=features.npz
  python -m mae_pp_jax embed --workdir=runs/maws_h14 --images='photos/*' --out=f.npz --pool=mean --image_size=518"""


def add_parser(verbs) -> None:
    parser = verbs.add_parser(
        "embed",
        help="write features of images",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, metavar="RUN", help=arguments.RUN)
    arguments.add_images(parser)
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
    images: str | Sequence[str],
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
      workdir: folder of a run, a released name or a file of weights; see `runs.locate`.
      images: folders, patterns and files, or one of them; see `picture_files.PictureFiles`.
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
    files = picture_files.PictureFiles([images] if isinstance(images, str) else images)
    mesh = partition.make_mesh(MeshConfig(rules="replicate"))
    encoder = saved_encoder.load(
        runs.locate(workdir, "--workdir"), mesh, pool=pool, image_size=image_size, resize=resize
    )
    batch, total = -(-batch // mesh.size) * mesh.size, files.count()
    found, used = [], []

    def load(content: bytes) -> dict[str, np.ndarray]:
        return {"image": images_lib.center_crop(content, encoder.image_size)}

    def unreadable(name: str, error: Exception) -> None:
        if not skip_unreadable:
            raise UserError(f"--images: {name} is no readable image; remove it or add --skip_unreadable") from error
        log.warning("%s is no readable image: skipped", name)

    with (
        jax.set_mesh(mesh),
        tqdm.tqdm(total=total, desc="embed", unit=" images", disable=not console.on_terminal()) as bar,
    ):
        for names, arrays, looked in picture_files.batches(files, load, batch, unreadable):
            features = encoder.features(partition.to_global(arrays, mesh)["image"])
            found.append(np.asarray(features)[: len(names)])
            used += names
            bar.update(looked)
    if not used:
        raise UserError(f"--images: none of the {total:,} files could be read")
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
