"""Lengths of training such as "800 epochs", and learning rate schedules over them."""

import logging
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mae_pp_jax.core.errors import UserError

log = logging.getLogger(__name__)

_LENGTH = re.compile(r"\s*((?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-z]+|%)\s*", re.IGNORECASE | re.ASCII)
_MOST_STEPS = 2**31 - 1  # steps are counted in int32


def steps(
    text: str,
    *,
    field: str,
    records: int,
    global_batch: int,
    total: int | None = None,
    least: int = 1,
    example: str = "example",
) -> int:
    """A length such as "800 epochs", "500 steps", "1e6 examples" or "5%" in optimizer steps.

    Args:
      text: number and unit; "%" is of the whole training and needs `total`.
      field: name of the config key, for the error.
      records: records in one epoch.
      global_batch: examples per step.
      total: steps of the whole training, for the lengths in it; None for the whole training itself.
      least: smallest length in it. A positive length that comes to fewer steps becomes this.
      example: what one example is called, also a unit.

    Raises:
      UserError: not a number and a unit, or 0 where `least` is more.
    """
    match = _LENGTH.fullmatch(text)
    factors = {"epoch": records / global_batch, "step": 1.0, example: 1.0 / global_batch, "example": 1.0 / global_batch}
    if total is not None:
        factors["%"] = total / 100
    unit = match[2].lower() if match else ""
    factor = factors.get(unit, factors.get(unit.removesuffix("s")))
    if factor is None:
        units = f"'30 epochs', '500 steps', '1e6 {example}s'" + ("" if total is None else " or '5%'")
        raise UserError(f"{field}: cannot read {text!r} as a length; write it like {units}")
    number = float(match[1].replace("_", ""))
    over = f"of {global_batch} {example}s over {records} records"
    if number * factor > _MOST_STEPS:
        raise UserError(f"{field}: {text!r} comes to more than {_MOST_STEPS} steps {over}; write a shorter length")
    count = round(number * factor)
    if count < least and number == 0:
        raise UserError(f"{field}: {text!r} comes to {count} steps {over}; use at least '{least} steps'")
    if count < least and total is None:
        log.info("%s: %r is less than a step %s: %d is done", field, text, over, least)
    return max(count, least)


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
