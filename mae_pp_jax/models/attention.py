"""Multi-head self-attention, and how its softmax(query · key) · value is computed on each platform."""

import jax
import jax.numpy as jnp
from flax import nnx

from mae_pp_jax.core import hardware
from mae_pp_jax.models import attention_cpu

xavier_uniform = nnx.initializers.xavier_uniform()


class Attention(nnx.Module):
    """Multi-head self-attention over [batch, tokens, width].

    Heads have an axis of their own in both kernels, so that they can be split over devices. The kernels are initialised
    as MAE's fused matrices: Xavier-uniform with fan-out 3 · width for qkv.

    Args:
      width: channels of a token.
      heads: attention heads, must divide `width`.
      dtype: compute dtype.
      rngs: keys for initialisation.
    """

    def __init__(self, width: int, heads: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
        head_dim = width // heads
        self.qkv = nnx.LinearGeneral(width, (3, heads, head_dim), kernel_init=xavier_uniform, dtype=dtype, rngs=rngs)
        self.proj = nnx.LinearGeneral(
            (heads, head_dim), width, axis=(-2, -1), kernel_init=xavier_uniform, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = jnp.unstack(self.qkv(x), axis=2)  # each [batch, tokens, heads, head_dim]
        return self.proj(attend(query, key, value))


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(query · keyᵀ / √head_dim) · value, all [batch, tokens, heads, head_dim]; the softmax runs in float32."""
    if hardware.platform() == "cpu":
        return attention_cpu.attend(query, key, value)
    return jax.nn.dot_product_attention(query, key, value)
