"""The transformer blocks that encoders and decoder are stacks of: pre-norm as in timm's and MAE's Vision Transformers,
post-norm as in BERT.

Parameters are float32. Matmuls run in the compute dtype; LayerNorm and softmax in float32.
"""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mae_pp_jax.core import rng
from mae_pp_jax.core.partition import constrain
from mae_pp_jax.models import adapters
from mae_pp_jax.models.attention import Attention, xavier_uniform
from mae_pp_jax.models.matmul import dot_general

TOKEN_AXES = ("batch", None, None)  # how activations [batch, tokens, width] lie on the mesh
# What `remat=dots` saves of a block; not the scores inside attention, which grow with tokens².
SAVED = ("qkv", "attended", "attention_added", "hidden")
# Axes of the parameters of a stack of blocks named `blocks`; see `core.partition`.
PARAMETER_AXES = (
    (r".*blocks/attn/qkv/kernel", ("layers", "fsdp", None, "tensor", None)),
    (r".*blocks/attn/qkv/bias", ("layers", None, "tensor", None)),
    (r".*blocks/attn/proj/kernel", ("layers", "tensor", None, "fsdp")),
    (r".*blocks/mlp/fc1/kernel", ("layers", "fsdp", "tensor")),
    (r".*blocks/mlp/fc1/bias", ("layers", "tensor")),
    (r".*blocks/mlp/fc2/kernel", ("layers", "tensor", "fsdp")),
    (r".*blocks/.*/(bias|scale)", ("layers", None)),
)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32, returned in `dtype`."""

    def __init__(self, width: int, dtype: jnp.dtype, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.dtype, self.eps = dtype, eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
        return (centered * jax.lax.rsqrt(variance + self.eps) * self.scale[...] + self.bias[...]).astype(self.dtype)


class Mlp(nnx.Module):
    """Two layers with the exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        linear = functools.partial(
            nnx.Linear, kernel_init=xavier_uniform, dtype=dtype, dot_general=dot_general, rngs=rngs
        )
        self.fc1, self.fc2 = linear(width, hidden), linear(hidden, width)

    def __call__(self, x: jax.Array, lora: Mapping | None = None) -> jax.Array:
        if lora is None:
            return self.fc2(gelu(checkpoint_name(self.fc1(x), "hidden")))
        hidden = gelu(checkpoint_name(self.fc1(x) + adapters.low_rank(lora, "fc1", x), "hidden"))
        return self.fc2(hidden) + adapters.low_rank(lora, "fc2", hidden)


@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x · (1 + erf(x / √2)) / 2, computed in float32 as PyTorch does, returned in the dtype of x.

    The backward pass computes the error function again, which is cheaper than keeping it. jax.nn.gelu's erfc, which is
    exact to the last digit far below 0, takes twice as long.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * np.float32(math.sqrt(0.5))))).astype(x.dtype)


class Block(nnx.Module):
    """x + Attention(LayerNorm(x)), then x + Mlp(LayerNorm(x)).

    Args:
      width: channels of a token.
      heads: attention heads.
      mlp: hidden width of the MLP.
      dtype: compute dtype.
      eps: of both LayerNorms.
      attention: "auto" or "xla", see `attention.attend`.
      rngs: keys for initialisation.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp: int,
        dtype: jnp.dtype,
        *,
        eps: float = 1e-6,
        attention: str = "auto",
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(width, dtype, eps)
        self.attn = Attention(width, heads, dtype, attention=attention, rngs=rngs)
        self.norm2 = LayerNorm(width, dtype, eps)
        self.mlp = Mlp(width, mlp, dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        branch_scale: jax.Array | None = None,
        adapter: Mapping | None = None,
        *,
        key_mask: jax.Array | None = None,
    ) -> jax.Array:
        """Tokens [batch, tokens, width] → the same.

        Args:
          x: tokens.
          branch_scale: [2, batch], what each sample's attention and MLP branch are multiplied with; see `drop_path`.
          adapter: this block's part of `adapters.ready`.
          key_mask: [batch, tokens] bool, False at tokens that no other attends to; see `attention.attend`.
        """
        attn_scale, mlp_scale = (None, None) if branch_scale is None else branch_scale
        adapter = adapter or {}
        if "prompts" in adapter:
            x = adapters.replace_prompts(x, adapter["prompts"])
        lora = adapter.get("lora")
        x = checkpoint_name(x + _scaled(self.attn(self.norm1(x), key_mask, lora), attn_scale), "attention_added")
        branch = _scaled(self.mlp(self.norm2(x), lora), mlp_scale)
        if "parallel" in adapter:
            branch = branch + adapters.parallel(adapter["parallel"], x)
        return constrain(x + branch, TOKEN_AXES)


def _scaled(branch: jax.Array, scale: jax.Array | None) -> jax.Array:
    """A branch [batch, tokens, width] times one float32 factor per sample [batch], in the dtype of the branch."""
    return branch if scale is None else (branch * scale[:, None, None]).astype(branch.dtype)


class PostNormBlock(nnx.Module):
    """LayerNorm(x + Attention(x)), then LayerNorm(x + Mlp(x)), as in BERT; arguments as `Block`.

    Args:
      dropout: share of the values of each branch that training sets to zero.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp: int,
        dtype: jnp.dtype,
        *,
        eps: float,
        attention: str = "auto",
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.dropout = dropout
        self.attn = Attention(width, heads, dtype, attention=attention, rngs=rngs)
        self.norm1 = LayerNorm(width, dtype, eps)
        self.mlp = Mlp(width, mlp, dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, dtype, eps)

    def __call__(self, x: jax.Array, keys: jax.Array | None = None, *, key_mask: jax.Array | None = None) -> jax.Array:
        """Tokens [batch, tokens, width] → the same; `keys` [batch] let dropout act, `key_mask` as in `Block`."""
        x = self.norm1(checkpoint_name(x + self._dropped(self.attn(x, key_mask), keys, "attention"), "attention_added"))
        return constrain(self.norm2(x + self._dropped(self.mlp(x), keys, "mlp")), TOKEN_AXES)

    def _dropped(self, branch: jax.Array, keys: jax.Array | None, purpose: str) -> jax.Array:
        return branch if keys is None else dropout(branch, rng.stream(keys, purpose), self.dropout)


def dropout(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Values of x [batch, …] become zero, each by its example's key; the others grow by 1 / (1 - rate)."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1.0 - rate), 0)


def drop_path(keys: jax.Array, rate: float, depth: int) -> jax.Array:
    """Stochastic depth for a whole stack: which branches of which samples are dropped, drawn at once.

    Block i of `depth` drops each of its two branches with probability rate · i / (depth - 1), for each sample apart,
    and scales the branches that it keeps by 1 / (1 - that probability).

    Args:
      keys: random keys [batch], one per sample.
      rate: probability at the last block.
      depth: number of blocks.

    Returns:
      [layers, 2, batch] float32, the scale of each block's attention and MLP branch.
    """
    keep = 1.0 - jnp.linspace(0.0, rate, depth)[:, None]
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, (depth, 2)), out_axes=2)(keys)
    return kept / keep[:, :, None]
