"""Optimizers over parameters addressed by path: ordered regex rules say what freezes, learns slower or decays.

Rules are (pattern, value) pairs; the first pattern that matches the whole path decides, and every parameter must be
matched. Frozen parameters get no gradient and no optimizer state.

Parameters may be stacks (`core.partition`). Each layer of a stack, and each of several independent models ("splits"),
is updated as if it stood alone: LARS takes one trust ratio per layer and model, clipping one norm per model.
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mae_pp_jax.core import schedule
from mae_pp_jax.core.config import key
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten
from mae_pp_jax.core.partition import STACKS, Axes

log = logging.getLogger(__name__)

FROZEN = "frozen"
Rules = Sequence[tuple[str, Any]]

# MAE excludes 1-D tensors and biases from weight decay (RECIPES: param_groups_weight_decay). Blocks are stacked here,
# so the same set is named by path: biases and LayerNorm scales.
BIAS_OR_SCALE = r".*(bias|scale)"
NO_DECAY_ON_BIAS_AND_SCALE: Rules = ((BIAS_OR_SCALE, 0.0), (r".*", 1.0))
TRUST_COEFFICIENT = 0.001  # of LARS (MAE util/lars.py)
_LITTLE = 0.01  # share of the stated learning rate below which its scaling is warned of


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimizer, learning rate and schedule."""

    name: str = key("adamw", "update rule", choices=("adamw", "sgd", "lars"))
    lr: float = key(
        1.5e-4, "learning rate for `lr_batch` examples; scaled linearly with the examples per step of a model", low=0.0
    )
    lr_batch: int = key(256, "examples per update for which `lr` is given; 0: `lr` is absolute", low=0)
    warmup: str = key("5%", "length of the linear warmup from 0")
    shape: str = key("cosine", "learning rate after the warmup", choices=("cosine", "constant"))
    min_lr: float = key(0.0, "learning rate at the end of the cosine, absolute", low=0.0)
    b1: float = key(0.9, "AdamW first moment decay; momentum of sgd and lars", low=0.0, high=1.0)
    b2: float = key(0.95, "AdamW second moment decay", low=0.0, high=1.0)
    moment_dtype: str = key(
        "float32", "how AdamW's first moment is kept; bfloat16 halves it", choices=("float32", "bfloat16")
    )
    weight_decay: float = key(0.05, "decoupled weight decay, multiplied by the learning rate", low=0.0)
    clip: float = key(0.0, "largest gradient norm over all parameters of a model; 0: no clipping", low=0.0)
    ema: float = key(
        0.0, "decay of the average of parameters that is evaluated and handed on; 0: none", low=0.0, high=1.0
    )


def assign(rules: Rules, paths: Sequence[str], what: str) -> dict[str, Any]:
    """Path → value of the first rule that matches the whole path.

    Raises:
      UserError: a path that no rule matches.
    """
    out = {}
    for path in paths:
        for pattern, value in rules:
            if re.fullmatch(pattern, path):
                out[path] = value
                break
        else:
            raise UserError(f"{what}: no rule covers the parameter {path}; end the rules with ('.*', …)")
    return out


@dataclasses.dataclass(frozen=True)
class PerModel:
    """A value of a rule for each of independent models, along the axis "splits" of the parameters that it covers."""

    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A pure optimizer over the trainable part of a nested parameter dict."""

    transform: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    frozen: frozenset[str]
    axes: Mapping  # nested dict of the trainable parameters' axes

    def split(self, params) -> tuple[dict, dict]:
        """(trainable, frozen) parameters, each a nested dict; `merge` joins them."""
        flat = flatten(params)
        trainable = {p: v for p, v in flat.items() if p not in self.frozen}
        return unflatten(trainable), unflatten({p: v for p, v in flat.items() if p in self.frozen})

    def init(self, params):
        """Optimizer state of the trainable parameters."""
        return self.transform.init(self.split(params)[0])

    def update(self, grads, state, trainable):
        """(new trainable parameters, new state) for gradients of the trainable parameters."""
        updates, state = self.transform.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state

    def norms(self, grads) -> jax.Array:
        """Norm of the gradients of each model, see `model_norms`."""
        return model_norms(grads, self.axes)


def merge(trainable, frozen):
    """The nested dict of both parts."""
    return unflatten({**flatten(trainable), **flatten(frozen)})


def make(
    config: OptimConfig,
    shapes: Mapping,
    *,
    axes: Mapping[str, Axes],
    model_batch: int,
    lr_rules: Rules,
    decay_rules: Rules,
    total: int,
    records: int,
    global_batch: int,
    example: str = "example",
) -> Optimizer:
    """Builds the optimizer.

    Args:
      config: what to build.
      shapes: nested dict of parameter shapes.
      axes: path → axes, which of them are stacks; see `core.partition`.
      model_batch: examples per step that one model sees; the learning rate scales with it.
      lr_rules: value per path: a factor on the learning rate, an array [layers] of factors for stacked blocks
        (layer-wise decay), a factor for each of independent models (`PerModel`), or `FROZEN`.
      decay_rules: value per path: a factor on the weight decay.
      total: steps of the whole training; 0: nothing is trained, and all may be frozen.
      records: records in one epoch.
      global_batch: examples per step.
      example: what one example is called, a unit of the warmup's length.

    The factor of `lr_rules` also scales the weight decay, as AdamW's decay is multiplied by the learning rate.
    """
    paths = list(flatten(shapes))
    speed = assign(lr_rules, paths, "learning rate rules")
    decay = assign(decay_rules, paths, "weight decay rules")
    frozen = frozenset(p for p, value in speed.items() if isinstance(value, str) and value == FROZEN)
    if len(frozen) == len(paths) and total:
        raise UserError("learning rate rules: every parameter is frozen, nothing would train")
    trainable = [p for p in paths if p not in frozen]
    own_axes = {p: axes[p] for p in trainable}
    matrices = {p: _is_matrix(p, own_axes[p]) for p in trainable}
    if config.name == "lars":
        decay = {p: decay[p] * matrices[p] for p in trainable}
    speeds = unflatten({p: _factors(speed[p], own_axes[p]) for p in trainable})
    decays = unflatten({p: np.asarray(decay[p], np.float32) for p in trainable})
    own_axes = unflatten(own_axes)
    scale = model_batch / config.lr_batch if config.lr_batch else 1.0
    if scale < _LITTLE:
        log.warning(
            "config.optim.lr: %.3g at a batch of %d becomes %.3g at %d, less than a hundredth, and hardly anything may "
            "be learned; set config.optim.lr_batch=0 and a rate for this batch",
            config.lr,
            config.lr_batch,
            config.lr * scale,
            model_batch,
        )
    peak = config.lr * scale
    warmup = schedule.steps(
        config.warmup,
        field="config.optim.warmup",
        records=records,
        global_batch=global_batch,
        total=total,
        least=0,
        example=example,
    )
    rate = schedule.learning_rate(peak, warmup=warmup, total=total, shape=config.shape, minimum=config.min_lr)

    direction = {
        "adamw": lambda: optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=1e-8, mu_dtype=config.moment_dtype),
        "sgd": lambda: optax.trace(decay=config.b1),
        "lars": lambda: optax.trace(decay=config.b1),
    }[config.name]()
    weight_decay = _add_decay(decays, config.weight_decay)
    if config.name == "adamw":
        steps = [direction, weight_decay, _scale(speeds), optax.scale_by_learning_rate(rate)]
    else:
        # Classic momentum runs over the whole update, learning rate outside (torch SGD, MAE util/lars.py).
        trust = [_trust(own_axes, unflatten(matrices))] if config.name == "lars" else []
        steps = [weight_decay, *trust, direction, _scale(speeds), optax.scale_by_learning_rate(rate)]
    clip = [_clip(own_axes, config.clip)] if config.clip else []
    return Optimizer(optax.chain(*clip, *steps), rate, frozen, own_axes)


def model_norms(tree, axes) -> jax.Array:
    """Euclidean norm over all leaves of each model, fp32: [], or [splits] of independent models.

    A leaf that all splits share counts in the norm of each.

    Args:
      tree: nested dict of arrays.
      axes: the same tree of their axes.
    """

    def squares(leaf, axes):
        of_a_model = tuple(i for i, axis in enumerate(axes) if axis != "splits")
        return jnp.sum(jnp.square(leaf.astype(jnp.float32)), of_a_model)

    return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(squares, tree, axes))))


def _is_matrix(path: str, axes: Axes) -> bool:
    """Whether LARS scales and decays a parameter: only those of two or more axes (MAE util/lars.py).

    Axes of a stack do not count, and a bias is one vector even where it has several axes here, as that of q, k and v.
    """
    return sum(axis not in STACKS for axis in axes) > 1 and not re.fullmatch(BIAS_OR_SCALE, path)


def _along(values, stack: str, axes: Axes):
    """One value, or one per entry of a stack, in a shape that broadcasts against a parameter with these axes."""
    return values.reshape([-1 if axis == stack else 1 for axis in axes]) if values.ndim else values


def _factors(value, axes: Axes) -> np.ndarray:
    """The value of a learning rate rule in a shape that broadcasts against a parameter with these axes."""
    if isinstance(value, PerModel):
        return _along(np.asarray(value.values, np.float32), "splits", axes)
    return _along(np.asarray(value, np.float32), "layers", axes)


def _clip(axes, largest: float) -> optax.GradientTransformation:
    """Bounds the norm of the gradient of each model; a leaf that all splits share is bounded by their largest norm."""

    def clip(updates, _):
        norms = model_norms(updates, axes)

        def of_leaf(update, axes):
            norm = _along(norms, "splits", axes) if "splits" in axes else jnp.max(norms)
            return jnp.where(norm < largest, update, update / norm * largest)

        return jax.tree.map(of_leaf, updates, axes)

    return optax.stateless(clip)


def _trust(axes, matrices) -> optax.GradientTransformation:
    """Scales the update of each matrix to its own norm, and leaves vectors (LARS, MAE util/lars.py)."""

    def of_leaf(update, param, axes, is_matrix):
        if not is_matrix:
            return update
        of_a_matrix = tuple(i for i, axis in enumerate(axes) if axis not in STACKS)
        size, step = (jnp.sqrt(jnp.sum(jnp.square(x), of_a_matrix, keepdims=True)) for x in (param, update))
        usual = (size > 0) & (step > 0)
        return update * jnp.where(usual, TRUST_COEFFICIENT * size / jnp.where(usual, step, 1.0), 1.0)

    return optax.stateless(lambda updates, params: jax.tree.map(of_leaf, updates, params, axes, matrices))


def _scale(factors) -> optax.GradientTransformation:
    if all(np.all(f == 1.0) for f in jax.tree.leaves(factors)):
        return optax.identity()
    return optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))


def _add_decay(factors, weight_decay: float) -> optax.GradientTransformation:
    if not weight_decay:
        return optax.identity()

    def add(updates, params):
        return jax.tree.map(lambda u, p, f: u + (weight_decay * f * p if np.any(f) else 0.0), updates, params, factors)

    return optax.stateless(add)
