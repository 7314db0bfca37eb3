"""The image encoder of a saved run, trained here or imported, as a function from images to features."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from mae_pp_jax.core import checkpoint, leaves, storage
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import Model, unflatten
from mae_pp_jax.data import augment
from mae_pp_jax.models import positions, vit
from mae_pp_jax.models.patches import height_width


@dataclasses.dataclass(frozen=True)
class SavedEncoder:
    """`features`: uint8 [batch, height, width, 3] → float32 [batch, width]; `image_size`: (height, width) in pixels."""

    features: Callable[[jax.Array], jax.Array]
    image_size: tuple[int, int]


def load(
    run: storage.Path,
    mesh,
    *,
    pool: str | None = None,
    image_size: tuple[int, int] | None = None,
    resize: str | None = None,
) -> SavedEncoder:
    """The encoder of a run's newest checkpoint, whole on each device of a mesh.

    Args:
      run: folder of the run.
      mesh: the device mesh.
      pool: "cls", "mean" (of the patch tokens, after `norm` where the model has one), "projection", or None for the
        model's own.
      image_size: (height, width) of the input in pixels, None for the run's.
      resize: whose way of resizing positions (`positions.METHODS`), None for that of the imported format, or MAE's.

    Raises:
      UserError: no run there, no encoder in it, a pooling that the model does not have, or a size that does not divide
        into patches.
    """
    step = checkpoint.find(run, field="--workdir")
    config = checkpoint.meta(run, step)["config"]
    found = checkpoint.weights(run, step)
    if any(path.startswith("adapters/") for path in found):
        raise UserError(
            f"--workdir: {run} has adapters of several models in one encoder; give the run that it started from "
            f"({config['init_from']['run']}), or with LoRA one that convert --merge makes of it"
        )
    saved = {p: leaf for p, leaf in found.items() if p.startswith("encoder/") or p == "projection/kernel"}
    if "encoder/pos_embed" not in saved:
        raise UserError(f"--workdir: {run} is a run of stage '{config['stage']}' and holds no image encoder")
    ends_in_mean = "encoder/fc_norm/scale" in saved
    model = config_lib.resolve(vit.VitConfig, {**config["model"], "pool": "mean" if ends_in_mean else "cls"})
    pool = _pool(run, model, saved, pool)
    own = height_width(config["data"]["image_size"])
    size = image_size or own
    grid = vit.grid(model, size, "--image_size")
    module = Model(lambda rngs: vit.Encoder(model, size, pooled=ends_in_mean, rngs=rngs))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    wanted = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole) for path, leaf in saved.items()}
    params = leaves.read(saved, wanted)
    table = np.asarray(params["encoder/pos_embed"])
    method = resize or checkpoint.imported_from(run, step).get("resize", "mae")
    table = positions.resize(table, grid, model.cls_token, old_grid=vit.grid(model, own), method=method)
    params["encoder/pos_embed"] = jax.device_put(table, whole)
    mean, std = config["data"]["mean"], config["data"]["std"]

    @jax.jit
    def features(params, images):
        tokens = "mean" if pool == "mean" else "cls"
        feature = module.apply(params["encoder"], augment.normalize(images, mean, std), tokens, method="features")
        return feature @ params["projection"]["kernel"] if pool == "projection" else feature

    return SavedEncoder(functools.partial(features, unflatten(params)), size)


def _pool(run: storage.Path, model: vit.VitConfig, saved: dict, pool: str | None) -> str:
    """How features are pooled: as asked, if the encoder's last norm and class token allow it, or the model's own way."""
    ends_in_mean = "encoder/fc_norm/scale" in saved
    if pool == "cls" and (ends_in_mean or not model.cls_token):
        raise UserError(f"--pool: the model of {run} has no normalised class token; use --pool=mean")
    if pool == "projection" and "projection/kernel" not in saved:
        raise UserError(f"--pool: the model of {run} has no projection; use --pool=cls or mean")
    if pool != "mean" and not ends_in_mean and not model.cls_token:
        raise UserError(f"--pool: the model of {run} has no class token; use --pool=mean")
    return pool or ("mean" if ends_in_mean else "cls")
