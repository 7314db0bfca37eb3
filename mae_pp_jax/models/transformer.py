"""A transformer over tokens, whatever they stand for: the stack of blocks and the norm after it."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mae_pp_jax.core import functional, rng
from mae_pp_jax.models import blocks
from mae_pp_jax.models.blocks import Block, LayerNorm


class Transformer(nnx.Module):
    """A stack of blocks and a last norm: parameters `blocks/…`, each with a leading `layers` axis, and `norm`.

    The image encoder and MAE's decoder are transformers by inheritance, so that these paths are their own.

    Args:
      width: channels of a token.
      depth: number of blocks.
      heads: attention heads.
      mlp: hidden width of the MLPs.
      dtype: compute dtype.
      eps: added to the variance in LayerNorms.
      attention: "auto" or "xla", see `attention.attend`.
      remat: what the backward pass recomputes, one of `functional.REMAT`.
      drop_path: stochastic depth rate of the last block in training, 0 at the first.
      last_norm: whether `norm` stands after the blocks.
      block: class of the blocks.
      rngs: keys for initialisation.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
        dtype: jnp.dtype,
        *,
        eps: float = 1e-6,
        attention: str = "auto",
        remat: str = "none",
        drop_path: float = 0.0,
        last_norm: bool = True,
        block: Callable[..., nnx.Module] = Block,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.depth, self.remat, self.drop_path = dtype, depth, remat, drop_path
        self.blocks = functional.stack(
            lambda r: block(width, heads, mlp, dtype, eps=eps, attention=attention, rngs=r), depth, rngs
        )
        self.norm = LayerNorm(width, dtype, eps) if last_norm else None

    def transform(
        self,
        x: jax.Array,
        keys: jax.Array | None = None,
        train: bool = False,
        key_mask: jax.Array | None = None,
        adapters: Mapping | None = None,
    ) -> jax.Array:
        """Tokens [batch, tokens, width] → the same, after all blocks and the norm.

        Args:
          x: tokens in the compute dtype.
          keys: [batch], keys for drop path; needed to train with `drop_path` above 0.
          train: whether drop path acts.
          key_mask: [batch, tokens] bool, False at tokens that no other attends to, such as the padding of texts.
          adapters: what is added to each block, leaves [layers, …]; see `adapters.ready`.
        """
        drop = ()
        if train and self.drop_path:
            if keys is None:
                raise ValueError("training with drop path needs a key for each example")
            drop = (blocks.drop_path(rng.stream(keys, "drop_path"), self.drop_path, self.depth),)
        if adapters:
            drop = (*(drop or (None,)), adapters)
        return self.run_blocks(x, *drop, key_mask=key_mask)

    def run_blocks(self, x: jax.Array, *per_layer, key_mask: jax.Array | None = None) -> jax.Array:
        """Tokens [batch, tokens, width] → the same, after all blocks and the norm; `per_layer` as in `functional.scan`."""
        shared = {"key_mask": key_mask}
        x = functional.scan(self.blocks, x, *per_layer, shared=shared, remat=self.remat, saved=blocks.SAVED)
        return x if self.norm is None else self.norm(x)
