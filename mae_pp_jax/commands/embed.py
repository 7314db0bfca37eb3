"""`embed`: features of images from a run or an imported checkpoint."""

import argparse
import concurrent.futures
import dataclasses
import functools
import glob
import io
import itertools
import logging
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from mae_pp_jax.core import checkpoint, console, disk, hardware, partition
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import Model, flatten, unflatten
from mae_pp_jax.core.partition import MeshConfig
from mae_pp_jax.data import augment
from mae_pp_jax.data import images as images_lib
from mae_pp_jax.data.decode import Unreadable
from mae_pp_jax.models import positions, vit

log = logging.getLogger(__name__)

DESCRIPTION = """Writes one feature an image: an .npz file with `features` (float32 [images, width]) and `files` (their
names, in the same order). The newest checkpoint of any run serves, also of an imported one. Images are resized by their
shorter side and cut to the centre square.

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
    parser.add_argument("--image_size", type=int, default=0, metavar="PIXELS", help="another input; resizes positions")
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
        image_size=args.image_size,
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
    image_size: int = 0,
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
      image_size: side of the input in pixels, 0 for the run's.
      resize: whose way of resizing positions (`positions.METHODS`), None for that of the imported format, or MAE's.
      batch: images at once, over all devices.
      skip_unreadable: whether to go on without images that cannot be read.

    Returns:
      (float32 [images, width], names of the files).

    Raises:
      UserError: no run there, no image, an unreadable one, or a pooling that the model does not have.
    """
    hardware.enable_compilation_cache()
    target = disk.local(out, "--out")
    if target.suffix != ".npz":
        raise UserError(f"--out: {out} must end in .npz")
    if batch < 1:
        raise UserError(f"--batch: must be at least 1, got {batch}")
    files = sorted(name for name in glob.glob(pattern, recursive=True) if pathlib.Path(name).is_file())
    if not files:
        raise UserError(f"--images: no file matches {pattern!r}; quote it, so that the shell leaves it alone")
    mesh = partition.make_mesh(MeshConfig(rules="replicate"))
    encoder = load(pathlib.Path(workdir), mesh, pool=pool, image_size=image_size, resize=resize)
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
    with disk.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    disk.write_whole(target, content.getvalue())
    return features, used


@dataclasses.dataclass(frozen=True)
class LoadedEncoder:
    """`features`: uint8 [batch, side, side, 3] → float32 [batch, width]; `image_size`: that side in pixels."""

    features: Callable[[jax.Array], jax.Array]
    image_size: int


def load(
    run: pathlib.Path, mesh, *, pool: str | None = None, image_size: int = 0, resize: str | None = None
) -> LoadedEncoder:
    """The encoder of a run's newest checkpoint on a mesh; arguments as for `embed`.

    Raises:
      UserError: as `embed`.
    """
    step = checkpoint.find(run, field="--workdir")
    config = checkpoint.meta(run, step)["config"]
    items = checkpoint.shapes(run, step)
    item = "ema" if "ema" in items else "params"
    saved = {p: leaf for p, leaf in items[item].items() if p.startswith("encoder/") or p == "projection/kernel"}
    if "encoder/pos_embed" not in saved:
        raise UserError(f"--workdir: {run} is a run of stage '{config['stage']}' and holds no image encoder")
    model = _model(run, config["model"], saved, pool)
    side = image_size or config["data"]["image_size"]
    ends_in_mean = "encoder/fc_norm/scale" in saved
    module = Model(lambda rngs: vit.Encoder(model, side, pooled=ends_in_mean, rngs=rngs))
    layout = partition.shardings(unflatten(saved), saved, "replicate", mesh)
    wanted = {
        path: jax.ShapeDtypeStruct(saved[path].shape, saved[path].dtype, sharding=sharding)
        for path, sharding in flatten(layout).items()
    }
    params = checkpoint.read(run, step, item, wanted)
    table = np.asarray(params["encoder/pos_embed"])
    grid = (vit.grid_side(model, side),) * 2
    method = resize or checkpoint.imported_from(run, step).get("resize", "mae")
    table = positions.resize(table, grid, model.cls_token, method=method)
    params["encoder/pos_embed"] = jax.device_put(table, wanted["encoder/pos_embed"].sharding)
    pool = pool or ("mean" if ends_in_mean else "cls")
    data = config["data"]

    @jax.jit
    def features(params, images):
        pixels = augment.normalize(images, data["mean"], data["std"])
        return _pooled(module, params, pixels, pool, ends_in_mean, model.cls_token)

    return LoadedEncoder(functools.partial(features, unflatten(params)), side)


def _model(run: pathlib.Path, mapping: dict, saved: dict, pool: str | None) -> vit.VitConfig:
    """The model's config, with a pooling that the encoder's last norm allows."""
    ends_in_mean = "encoder/fc_norm/scale" in saved
    model = config_lib.resolve(vit.VitConfig, {**mapping, "pool": "mean" if ends_in_mean else "cls"})
    if pool == "cls" and (ends_in_mean or not model.cls_token):
        raise UserError(f"--pool: the model of {run} has no normalised class token; use --pool=mean")
    if pool == "projection" and "projection/kernel" not in saved:
        raise UserError(f"--pool: the model of {run} has no projection; use --pool=cls or mean")
    if pool is None and not ends_in_mean and not model.cls_token:
        raise UserError(f"--pool: the model of {run} has no class token; use --pool=mean")
    return model


def _pooled(module: Model, params, pixels: jax.Array, pool: str, ends_in_mean: bool, cls: bool) -> jax.Array:
    """Features [batch, width] of normalised pixels [batch, height, width, 3], float32."""
    tokens = module.apply(params["encoder"], pixels)
    if ends_in_mean:
        feature = module.apply(params["encoder"], tokens, method="pool_tokens")
    elif pool == "mean":
        feature = jnp.mean(tokens[:, int(cls) :], axis=1, dtype=jnp.float32)
    else:
        feature = tokens[:, 0]
    feature = feature.astype(jnp.float32)
    return feature @ params["projection"]["kernel"] if pool == "projection" else feature


def _batches(files: list[str], side: int, batch: int, skip_unreadable: bool) -> Iterator[tuple[list[str], np.ndarray]]:
    """(names of up to `batch` files, uint8 [batch, side, side, 3] padded with black), decoded a few batches ahead."""

    def read(name: str) -> np.ndarray | None:
        try:
            return images_lib.center_crop(pathlib.Path(name).read_bytes(), (side, side))
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
                pixels = np.zeros((batch, side, side, 3), np.uint8)
                for i, (_, image) in enumerate(good):
                    pixels[i] = image
                yield [name for name, _ in good], pixels
        finally:
            pool.shutdown(cancel_futures=True)
