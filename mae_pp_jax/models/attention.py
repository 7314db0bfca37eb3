"""Multi-head self-attention, and how its softmax(query · key) · value is computed on each platform."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mae_pp_jax.core import hardware, partition
from mae_pp_jax.models import adapters, attention_cpu, attention_tpu
from mae_pp_jax.models.matmul import matmul

QKV_AXES = (None, "batch", None, "tensor")
OUT_AXES = ("batch", None, "tensor")
xavier_uniform = nnx.initializers.xavier_uniform()


class Attention(nnx.Module):
    """Multi-head self-attention over [batch, tokens, width].

    Heads have an axis of their own in both kernels, so that they can be split over devices. Activations have not: an
    axis of 64 channels would leave half of a TPU's vector registers empty. The kernels are initialised as MAE's fused
    matrices: Xavier-uniform with fan-out 3 · width for qkv.

    Args:
      width: channels of a token.
      heads: attention heads, must divide `width`.
      dtype: compute dtype.
      attention: "auto" or "xla", see `attend`.
      rngs: keys for initialisation.
    """

    def __init__(self, width: int, heads: int, dtype: jnp.dtype, *, attention: str = "auto", rngs: nnx.Rngs):
        head_dim = width // heads
        self.attention, self.heads, self.dtype = attention, heads, dtype
        self.qkv = nnx.LinearGeneral(width, (3, heads, head_dim), kernel_init=xavier_uniform, dtype=dtype, rngs=rngs)
        self.proj = nnx.LinearGeneral(
            (heads, head_dim), width, axis=(-2, -1), kernel_init=xavier_uniform, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, key_mask: jax.Array | None = None, lora: Mapping | None = None) -> jax.Array:
        """Tokens [batch, tokens, width] → the same; `key_mask` as in `attend`, `lora` as `adapters.low_rank` takes it."""
        width = x.shape[-1]
        kernel, bias = (p[...].astype(self.dtype) for p in (self.qkv.kernel, self.qkv.bias))
        qkv = _project(x, kernel.reshape(width, 3, width), bias.reshape(3, width))
        if lora is not None and lora.keys() & set("qkv"):
            qkv = jnp.stack(
                [part + adapters.low_rank(lora, target, x) for part, target in zip(qkv, "qkv", strict=True)]
            )
        out = checkpoint_name(attend(qkv, self.heads, self.attention, key_mask), "attended")
        kernel, bias = (p[...].astype(self.dtype) for p in (self.proj.kernel, self.proj.bias))
        projected = matmul(out, kernel.reshape(width, width)) + bias
        return projected if lora is None else projected + adapters.low_rank(lora, "proj", out)


def _project(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Tokens [batch, tokens, width] → queries, keys and values [3, batch, tokens, width].

    Args:
      x: tokens.
      kernel: [width, 3, width].
      bias: [3, width].
    """
    width = x.shape[-1]
    if hardware.platform() == "cpu":  # one plain product of matrices
        qkv = checkpoint_name(matmul(x, kernel.reshape(width, 3 * width)) + bias.reshape(-1), "qkv")
        return jnp.moveaxis(qkv.reshape(*x.shape[:-1], 3, width), -2, 0)
    return checkpoint_name(_add_bias(jnp.einsum("btw,wcx->cbtx", x, kernel), bias), "qkv")


@jax.custom_vjp
def _add_bias(qkv: jax.Array, bias: jax.Array) -> jax.Array:
    """[3, batch, tokens, width] + [3, width]."""
    return qkv + bias[:, None, None, :]


def _add_bias_backward(_, grad):
    # A product with rows of ones, as many as a TPU's register has: XLA's own sum over these axes took 6% of a ViT-L step.
    ones = jax.lax.optimization_barrier(jnp.ones((8, *grad.shape[1:3]), grad.dtype))
    sums = jnp.einsum("rbt,cbtx->crx", ones, grad, preferred_element_type=jnp.float32)
    return grad, sums[:, 0].astype(grad.dtype)


_add_bias.defvjp(lambda qkv, bias: (_add_bias(qkv, bias), None), _add_bias_backward)


def attend(qkv: jax.Array, heads: int, attention: str = "auto", key_mask: jax.Array | None = None) -> jax.Array:
    """softmax(query · keyᵀ / √head_dim) · value; the softmax runs in float32.

    Args:
      qkv: [3, batch, tokens, width], queries, keys and values with the channels of all heads after one another.
      heads: number of heads.
      attention: "xla" is plain `jax.nn.dot_product_attention`; "auto" takes what is faster on the platform: on TPUs a
        kernel of ours and on GPUs cuDNN's, where they take these sizes and there is no mask.
      key_mask: [batch, tokens] bool, False at tokens that no query attends to (padding); None: all are attended to.

    Returns:
      [batch, tokens, width]; zeros for an example whose every key is masked.
    """
    _, batch, tokens, width = qkv.shape
    platform = hardware.platform() if attention == "auto" else ""
    if platform == "tpu" and key_mask is None:
        local_heads = partition.local_shape((heads,), ("tensor",))[0]
        if attention_tpu.heads_of_block(local_heads, width // heads, tokens):
            kernel = functools.partial(attention_tpu.attend, heads=local_heads)
            return partition.on_each_device(kernel, QKV_AXES, OUT_AXES)(qkv)
    if platform == "cpu":
        return attention_cpu.attend(qkv, heads, key_mask)
    query, key, value = qkv.reshape(3, batch, tokens, heads, width // heads)
    fused = key_mask is None and platform == "gpu" and _cudnn_has(qkv.dtype, width // heads)
    mask = None if key_mask is None else key_mask[:, None, None, :]
    out = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn" if fused else "xla")
    if mask is not None:  # without any key softmax would weigh all alike
        out = jnp.where(jnp.any(mask, axis=-1, keepdims=True), out, 0)
    return out.reshape(batch, tokens, width)


def _cudnn_has(dtype: jnp.dtype, head_dim: int) -> bool:
    """Whether cuDNN's fused attention takes these arrays on this GPU: half precision, from Ampere on."""
    capability = str(jax.devices()[0].compute_capability)  # "9.0"; AMD's have names
    new_enough = capability[:1].isdigit() and float(capability) >= 8.0
    return new_enough and dtype.itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128
