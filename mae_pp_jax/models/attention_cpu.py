"""Attention for CPUs, where writing the weights [batch, heads, tokens, tokens] to memory costs more than their FLOPs.

XLA's derivative of softmax keeps several arrays of that size for the backward pass. Here it keeps none: the weights
are computed again from queries, keys and the logarithm of each softmax's denominator, as in FlashAttention (Dao et al.
2022, section 3.1 and appendix B). One full-size array at a time is left to XLA, which caches hold well enough.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


def attend(qkv: jax.Array, heads: int) -> jax.Array:
    """softmax(query · keyᵀ / √head_dim) · value; the softmax runs in float32.

    Args:
      qkv: [3, batch, tokens, width], queries, keys and values with the channels of all heads after one another.
      heads: number of heads.

    Returns:
      [batch, tokens, width].
    """
    _, batch, tokens, width = qkv.shape
    # Heads before tokens: then each product is a stack of plain matrices.
    split = qkv.reshape(3, batch, tokens, heads, width // heads).swapaxes(2, 3)
    return _attend(split).swapaxes(1, 2).reshape(batch, tokens, width)


@jax.custom_vjp
def _attend(qkv: jax.Array) -> jax.Array:
    """qkv [3, batch, heads, tokens, head_dim] → [batch, heads, tokens, head_dim]."""
    return _forward(qkv)[0]


def _forward(qkv):
    query, key, value = qkv
    scores = _scores(query, key)
    largest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(value.dtype), value) / total.astype(value.dtype)
    # The name lets a rematerialisation policy keep both, and so not run all of this again.
    out, log_total = checkpoint_name((out, largest + jnp.log(total)), "attended")
    return out, (qkv, out, log_total)


def _backward(saved, grad):
    (query, key, value), out, log_total = saved
    weights = jnp.exp(_scores(query, key) - log_total)
    grad_weights = jnp.einsum("bhqd,bhkd->bhqk", grad, value, preferred_element_type=jnp.float32)
    # Σ_k weights · grad_weights, of which softmax's derivative takes a multiple off, is Σ_d out · grad.
    common = jnp.sum((out * grad).astype(jnp.float32), axis=-1, keepdims=True)
    grad_scores = (weights * (grad_weights - common) * query.shape[-1] ** -0.5).astype(query.dtype)
    grads = (
        jnp.einsum("bhqk,bhkd->bhqd", grad_scores, key),
        jnp.einsum("bhqk,bhqd->bhkd", grad_scores, query),
        jnp.einsum("bhqk,bhqd->bhkd", weights.astype(grad.dtype), grad),
    )
    return (jnp.stack(grads),)


def _scores(query, key):
    """query · keyᵀ / √head_dim, float32 [batch, heads, tokens, tokens]."""
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    return jnp.einsum("bhqd,bhkd->bhqk", scaled, key, preferred_element_type=jnp.float32)


_attend.defvjp(_forward, _backward)
