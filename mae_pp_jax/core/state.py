"""Everything that training changes, in one pytree."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run after `step` updates; a checkpoint holds all of it, so a run resumes exactly.

    Attributes:
      step: int32 scalar, updates done.
      params: nested dict of parameters.
      opt_state: optimizer state of the trainable parameters.
      ema: running average of the trainable parameters, or None.
      rng: key data [2] uint32 of the run's seed; the key of a step is fold_in(rng, step). It is an argument of the
        step, not a constant in it, so that runs that differ by seed share one compiled program.
      metrics: name → (sum, weight) since the last log; part of the state so that a kill between logs loses nothing.
      bad_step: int32 scalar, first step with a non-finite loss or gradient, -1 while there is none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    rng: jax.Array
    metrics: Any
    counts: Any
    bad_step: jax.Array


def create(params, opt_state, *, seed: int, averaged, metrics: dict, counts: Iterable[str]) -> TrainState:
    """The state before the first update.

    Args:
      params: all parameters.
      opt_state: of the trainable ones.
      seed: of the run.
      averaged: the parameters of which an average is kept, or None.
      metrics: name → zeros (sum, weight).
      counts: names.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=opt_state,
        ema=jax.tree.map(jnp.copy, averaged),
        rng=jax.random.key_data(jax.random.key(seed)),
        metrics=metrics,
        counts={name: jnp.zeros((), jnp.int32) for name in counts},
        bad_step=jnp.full((), -1, jnp.int32),
    )


def step_key(state: TrainState) -> jax.Array:
    """The random key of the step about to be taken."""
    return key_of_step(jax.random.wrap_key_data(state.rng), state.step)


def key_of_step(key: jax.Array, step: jax.Array | int) -> jax.Array:
    """The random key of a step of a run, from the key of the run's seed."""
    return jax.random.fold_in(key, step)
