"""Activations times weights, with the derivative in the form that each platform runs fastest."""

import jax

from mae_pp_jax.core import hardware


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., inputs] · kernel [inputs, outputs] → [..., outputs]."""
    if hardware.platform() != "cpu":
        return x @ kernel
    return _on_cpu(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[1])


def dot_general(x: jax.Array, kernel: jax.Array, dimension_numbers, precision=None, out_sharding=None) -> jax.Array:
    """`matmul` as `nnx.Linear` asks for it."""
    del dimension_numbers, precision, out_sharding  # nnx.Linear's own: last axis of x, first of the kernel
    return matmul(x, kernel)


@jax.custom_vjp
def _on_cpu(x, kernel):
    return x @ kernel


def _forward(x, kernel):
    return x @ kernel, (x, kernel)


def _backward(saved, grad):
    x, kernel = saved
    # XLA's fast matrix products want the rows of the left factor one after another in memory. Left to itself it runs
    # xᵀ · grad by a slower library: on one core 43 instead of 86 GFLOP/s for 1576 × 512 by 1576 × 2048, the decoder of
    # MAE ViT-S. The narrower factor is the one to transpose; barriers keep XLA from folding that away.
    copied = jax.lax.optimization_barrier
    if x.shape[1] <= grad.shape[1]:
        grad_kernel = copied(x.T) @ grad
    else:
        grad_kernel = copied(copied(grad.T) @ x).T
    return grad @ kernel.T, grad_kernel


_on_cpu.defvjp(_forward, _backward)
