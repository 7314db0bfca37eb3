"""What becomes of the position table of a run when the next one has another grid of patches or class token."""

import functools
from collections.abc import Mapping

import numpy as np

from mae_pp_jax.core import checkpoint
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.models import positions, vit
from mae_pp_jax.models.patches import height_width


def resized(config, meta: Mapping, *, frozen: bool = False):
    """How a position table of another run becomes one of the run with this config; see `handoff.Resize`.

    Imported weights are resized as the code that they come from does it (`positions.METHODS`), others as MAE does
    (util/pos_embed.py).

    Args:
      config: of a stage on images.
      meta: the JSON part of the other run's checkpoint.
      frozen: whether this stage does not train the encoder, so that nothing of it may start fresh for good.
    """
    new, old = config.model, config_lib.resolve(vit.VitConfig, meta["config"]["model"])
    new_grid = vit.grid(new, config.data.size)
    old_grid = vit.grid(old, height_width(meta["config"]["data"]["image_size"]))
    if frozen and new.cls_token and not old.cls_token:
        raise UserError(
            "config.model.cls_token: the run it starts from has no class token, and this stage trains none; set "
            "config.model.cls_token=false and config.model.pool=mean"
        )
    notes, method = [], checkpoint.import_record(meta).get("resize", "mae")
    if new_grid != old_grid:
        notes.append("grid {}×{} → {}×{}".format(*old_grid, *new_grid) + f", as {method} does" * (method != "mae"))
    if new.cls_token != old.cls_token:
        notes.append(f"{'with a row of zeros' if new.cls_token else 'without the row'} for the class token")
    arguments = dict(old=(old_grid, old.cls_token), new=(new_grid, new.cls_token), method=method)
    function = functools.partial(_resize, **arguments) if notes else None
    if old.positions == "learned" and new.positions == "sincos":
        notes.append("learned there, fixed here as they are")
    return function, ", ".join(notes)


def _resize(table: np.ndarray, old: tuple, new: tuple, method: str) -> np.ndarray:
    """A position table of (grid, class token) `old` for those of `new`."""
    table = positions.resize(table, new[0], has_cls=old[1], old_grid=old[0], method=method)
    return positions.set_class_row(table, old[1], new[1])
