"""The bridge between Flax NNX modules, in which models are written, and the pure functions that everything else uses.

This is the only file that splits and merges modules. Outside it parameters are nested dicts of arrays, addressed by
slash paths such as `encoder/blocks/attn/qkv/kernel`, and a model is the pair (init, apply). That keeps dispatch cheap,
leaves nothing stateful inside `jax.jit`, and lets freezing, decay, sharding and handoff all speak of the same paths.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

# What the backward pass finds saved, and what it computes again. `none` saves every intermediate value; `full` saves
# the input of each block alone; `dots` saves what matmuls of a block made, by the names that its module gives them with
# `checkpoint_name`.
REMAT = ("none", "full", "dots")


class Model:
    """A module as pure functions of its parameters.

    Args:
      make: builds the module from `nnx.Rngs`. It must build the same structure each time, and keep no `nnx.Rngs` in the
        module: whatever is random when the model is applied takes a key as an argument.
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        self._make = make
        self._graph, self._state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        self._shapes = nnx.to_pure_dict(self._state)

    def init(self, key: jax.Array) -> dict:
        """Fresh parameters, a nested dict. Traceable, so that `jax.jit` can create them already sharded."""
        return nnx.to_pure_dict(nnx.state(self._make(nnx.Rngs(params=key))))

    def shapes(self) -> dict:
        """The tree of `init` with a `jax.ShapeDtypeStruct` for each parameter; nothing is allocated."""
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._shapes)

    def apply(self, params: Mapping, *args, method: str = "__call__", **kwargs) -> Any:
        """Calls `method` of the module with `params` as its parameters.

        Raises:
          ValueError: `params` lacks a parameter of the model or holds one that the model has not.
        """
        if jax.tree.structure(params) != jax.tree.structure(self._shapes):
            given, known = set(flatten(params)), set(flatten(self._shapes))
            raise ValueError(f"parameters do not fit: missing {sorted(known - given)}, unknown {sorted(given - known)}")
        state = jax.tree.unflatten(jax.tree.structure(self._state), jax.tree.leaves(params))
        return getattr(nnx.merge(self._graph, state), method)(*args, **kwargs)


def stack(make_block: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """`depth` equal blocks as one module whose every parameter has a leading `layers` axis; run it with `scan`.

    Args:
      make_block: builds one block.
      depth: number of blocks.
      rngs: each block is initialised with a key of its own, split from `rngs.params()`.
    """
    graph, _ = nnx.split(nnx.eval_shape(lambda: make_block(nnx.Rngs(0))))
    keys = jax.random.split(rngs.params(), depth)
    # A loop rather than vmap: XLA on CPU takes twice as long to compile batched random bits.
    return nnx.merge(graph, jax.lax.map(lambda key: nnx.state(make_block(nnx.Rngs(params=key))), keys))


def scan(
    blocks: nnx.Module,
    x: jax.Array,
    *per_layer,
    shared: Mapping[str, Any] | None = None,
    remat: str = "none",
    saved: Sequence[str] = (),
) -> jax.Array:
    """Runs stacked blocks one after another under `jax.lax.scan`, so that compile time does not grow with depth.

    Args:
      blocks: a module made by `stack`.
      x: input of the first block; each block must keep its shape and dtype.
      *per_layer: pytrees with a leading `layers` axis; block i is called as
        `block(x, *[p[i] for p in per_layer], **shared)`.
      shared: arguments that all blocks take alike.
      remat: what the backward pass recomputes, one of `REMAT`.
      saved: the names under which a block's values are saved by `dots`.
    """
    graph, state = nnx.split(blocks)

    def body(x, layer):
        layer_state, extras = layer
        return nnx.merge(graph, layer_state)(x, *extras, **(shared or {})), None

    if remat != "none":
        names = saved if remat == "dots" else ()
        # A scan is never merged with its recomputation, so the barriers against common subexpressions are not needed.
        body = jax.checkpoint(body, policy=jax.checkpoint_policies.save_only_these_names(*names), prevent_cse=False)
    return jax.lax.scan(body, x, (state, per_layer))[0]


def flatten(tree: Mapping) -> dict[str, Any]:
    """A nested dict as {slash path: leaf}, in the order in which JAX visits the leaves.

    Raises:
      ValueError: a key is no text, or contains a slash.
    """
    flat = {}
    for name in sorted(tree):
        if not isinstance(name, str) or "/" in name:
            raise ValueError(f"keys of a parameter tree must be text without '/', got {name!r}")
        value = tree[name]
        if isinstance(value, Mapping):
            flat |= {f"{name}/{path}": leaf for path, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict:
    """The nested dict of {slash path: leaf}; the inverse of `flatten`.

    Raises:
      ValueError: one path goes on below another, as in {"a": 1, "a/b": 2}.
    """
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        at = tree
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                raise ValueError(f"{path}: a part of this path is itself a leaf")
        if name in at:
            raise ValueError(f"{path}: this path is both a leaf and a part of another")
        at[name] = leaf
    return tree
