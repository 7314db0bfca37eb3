"""Lengths of training as people say them, and learning rate schedules over them."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mae_pp_jax.core.errors import UserError

_LENGTH = re.compile(r"\s*([0-9][0-9_.]*(?:e[0-9]+)?)\s*(epochs?|steps?|images?|%)\s*", re.IGNORECASE)


def steps(
    text: str, *, field: str, records: int, global_batch: int, total: int | None = None, example: str = "example"
) -> int:
    """A length such as "800 epochs", "500 steps", "1e6 images" or "5%" in optimizer steps.

    Args:
      text: number and unit; "%" is of the whole training and needs `total`.
      field: name of the config key, for the error.
      records: records in one epoch.
      global_batch: images a step.
      total: steps of the whole training.

    Raises:
      UserError: not a number and a unit.
    """
    match = _LENGTH.fullmatch(text)
    if not match or (match[2] == "%" and total is None):
        units = "'30 epochs', '500 steps', '1e6 images'" + ("" if total is None else " or '5%'")
        raise UserError(f"{field}: cannot read {text!r} as a length; write it like {units}")
    number, unit = float(match[1].replace("_", "")), match[2].lower().rstrip("s")
    factor = {"epoch": records / global_batch, "step": 1.0, "image": 1.0 / global_batch, "%": (total or 0) / 100}[unit]
    return round(number * factor)


def learning_rate(
    peak: float, *, warmup: int, total: int, shape: str = "cosine", minimum: float = 0.0
) -> Callable[[jax.Array], jax.Array]:
    """Linear warmup from exactly 0 over `warmup` steps, then half a cosine to `minimum`, or constant.

    Updated every step, as in facebookresearch/mae util/lr_sched.py (there with fractional epochs).
    """

    def at(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rising = peak * step / max(warmup, 1)
        progress = jnp.clip((step - warmup) / max(total - warmup, 1), 0.0, 1.0)
        after = minimum + (peak - minimum) * 0.5 * (1 + jnp.cos(jnp.pi * progress)) if shape == "cosine" else peak
        return jnp.where(step < warmup, rising, after)

    return at
