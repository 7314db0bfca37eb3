"""The TPU kernel, run by Pallas' interpreter of TPU programs, against XLA's attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mae_pp_jax.core import config, functional, hardware, partition
from mae_pp_jax.models import attention, attention_cpu, attention_tpu

# images, tokens, heads, channels of a head: of ViT-L, H and 6.5B and of the MAE decoder, with an odd number of tokens.
SIZES = [(2, 17, 4, 64), (2, 9, 8, 80), (3, 20, 2, 128), (1, 50, 4, 32)]


def values_and_gradient(attend, qkv, gradient):
    """attend(qkv) and the gradient of sum(attend(qkv) · gradient), compiled as one program."""

    @jax.jit
    def both(qkv, gradient):
        out, vjp = jax.vjp(attend, qkv)
        return out, vjp(gradient)[0]

    return both(qkv, gradient)


def drawn(size, dtype):
    batch, tokens, heads, head_dim = size
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(3, batch, tokens, heads * head_dim))
    return jnp.asarray(qkv, dtype), jnp.asarray(rng.normal(size=qkv.shape[1:]), dtype)


@pytest.mark.parametrize("size", SIZES)
def test_kernel_equals_attention_by_xla(size):
    qkv, gradient = drawn(size, jnp.float32)
    expected = values_and_gradient(lambda x: attention.attend(x, size[2], "xla"), qkv, gradient)
    interpret = pltpu.InterpretParams()
    found = values_and_gradient(lambda x: attention_tpu.attend(x, size[2], interpret), qkv, gradient)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-6)
    np.testing.assert_allclose(found[1], expected[1], atol=5e-6)


def test_kernel_runs_on_each_device_with_its_own_images_and_heads():
    """Eight devices: images over four of them, heads over two."""
    qkv, gradient = drawn((8, 9, 4, 64), jnp.float32)
    expected = values_and_gradient(lambda x: attention.attend(x, 4, "xla"), qkv, gradient)
    kernel = functools.partial(attention_tpu.attend, heads=2, interpret=True)
    mesh = partition.make_mesh(config.resolve(partition.MeshConfig, dict(data=2, fsdp=2, tensor=2)))
    with jax.set_mesh(mesh):
        spread = partition.on_each_device(kernel, attention.QKV_AXES, attention.OUT_AXES)
        found = values_and_gradient(spread, qkv, gradient)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-6)
    np.testing.assert_allclose(found[1], expected[1], atol=5e-6)


def test_kernel_keeps_scores_in_float32():
    """Scores of ±60 that bfloat16 would round by a quarter."""
    size = (1, 16, 2, 64)
    qkv, _ = drawn(size, jnp.bfloat16)
    qkv = qkv.at[:2].multiply(4)
    found = jax.jit(lambda x: attention_tpu.attend(x, size[2], pltpu.InterpretParams()))(qkv)
    assert found.dtype == jnp.bfloat16
    exact = jax.jit(lambda x: attention.attend(x.astype(jnp.float32), size[2], "xla"))(qkv)
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02)


def test_sizes_that_fill_no_register_or_do_not_fit_are_left_to_xla():
    assert attention_tpu.heads_of_block(16, 64, 197) == 2
    assert attention_tpu.heads_of_block(16, 80, 257) == 8
    assert attention_tpu.heads_of_block(32, 128, 257) == 1
    assert attention_tpu.heads_of_block(3, 64, 197) is None  # ViT-Ti: 192 channels
    assert attention_tpu.heads_of_block(16, 64, 1025) == 2  # 512 pixels
    assert attention_tpu.heads_of_block(16, 80, 1370) == 8  # 518 pixels in patches of 14
    assert attention_tpu.heads_of_block(16, 64, 50_000) is None
    assert [attention_tpu.queries_of_block(tokens) for tokens in (197, 700, 1370, 4096)] == [197, 512, 256, 128]


@pytest.mark.parametrize("tokens", [48, 50, 16])  # 3 blocks of queries; 3 and some more; a single one
def test_queries_taken_some_at_a_time(tokens, monkeypatch):
    monkeypatch.setattr(attention_tpu, "SCORES_BYTES", 16 * 128 * 4)
    assert attention_tpu.queries_of_block(tokens) == 16
    test_kernel_equals_attention_by_xla((2, tokens, 4, 64))


def test_accelerators_and_cpus_have_the_same_values_and_gradients():
    """With scores of ±5: what rounding a score does to its weight grows with the score."""
    model = functional.Model(lambda rngs: attention.Attention(24, 4, jnp.float32, attention="xla", rngs=rngs))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 4, x.dtype), model.shapes())
    x, weights = (jnp.asarray(rng.normal(size=(3, 5, 24)), jnp.float32) for _ in range(2))

    def gradients(platform):
        with hardware.compiling_for(platform):
            return jax.jit(jax.value_and_grad(lambda *a: jnp.sum(model.apply(*a) * weights), (0, 1)))(params, x)

    ours, others = (
        functional.flatten({"value": v, "params": g[0], "x": g[1]}) for v, g in map(gradients, ("cpu", "tpu"))
    )
    assert "params/qkv/bias" in ours
    for name, value in ours.items():
        np.testing.assert_allclose(value, others[name], rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("attend", [functools.partial(attention.attend, attention="xla"), attention_cpu.attend])
def test_large_scores_are_as_exact_as_float32_allows(attend):
    """Scores of ±1000, whose exponentials would overflow, against float64 with an error bound that follows from them.

    A score rounded by δ changes its weight by the factor 1 + δ, and so a mean of values by at most 2δ · max |value|.
    """
    qkv, gradient = drawn((2, 17, 3, 24 // 3), jnp.float32)
    qkv = qkv.at[:2].multiply(16)
    found, found_gradient = values_and_gradient(lambda x: attend(x, 3), qkv, gradient)
    query, key, value = np.float64(qkv).reshape(3, 2, 17, 3, 8)
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(8)
    assert np.abs(scores).max() > 700
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    exact = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), value).reshape(2, 17, 24)
    # A sum of 8 products rounds by at most 8 units in the last place of the sum of their sizes.
    rounding = 8 * 2.0**-23 * np.einsum("bqhd,bkhd->bhqk", abs(query), abs(key)).max() / np.sqrt(8)
    np.testing.assert_allclose(found, exact, atol=2 * rounding * np.abs(value).max())
    assert np.all(np.isfinite(found_gradient))


def exact_attention(qkv, heads, mask, gradient):
    """The definition in float64, a query at a time: values, and the gradient of sum(values · gradient) by qkv."""
    query, key, value = np.float64(qkv).reshape(*qkv.shape[:3], heads, -1)
    out, grad = np.zeros(query.shape), np.zeros((3, *query.shape))
    scale, upstream = query.shape[-1] ** -0.5, np.float64(gradient).reshape(query.shape)
    for b, t, h in np.ndindex(*query.shape[:3]):
        seen = np.flatnonzero(mask[b])
        if not len(seen):
            continue
        keys, values, g = key[b, seen, h], value[b, seen, h], upstream[b, t, h]
        scores = scale * keys @ query[b, t, h]
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[b, t, h] = weights @ values
        by_score = weights * (values @ g - g @ out[b, t, h]) * scale
        grad[0, b, t, h] += by_score @ keys
        grad[1, b, seen, h] += np.outer(by_score, query[b, t, h])
        grad[2, b, seen, h] += np.outer(weights, g)
    return out.reshape(gradient.shape), grad.reshape(qkv.shape)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_masked_keys_have_no_part_in_values_and_gradients(platform):
    """Examples with random masks, with one key alone, with all and with none. Large values stand under the mask."""
    qkv, gradient = drawn((5, 9, 2, 64), jnp.float32)  # sizes that the TPU's kernel would take without a mask
    mask = np.random.default_rng(1).random((5, 9)) < 0.6
    mask[1], mask[2], mask[3] = np.arange(9) == 4, True, False
    masked = np.broadcast_to(~mask[None, :, :, None], qkv[1:].shape)
    qkv = qkv.at[1:].set(jnp.where(masked, 100 * qkv[1:], qkv[1:]))
    with hardware.compiling_for(platform):
        attend = functools.partial(attention.attend, heads=2, key_mask=jnp.asarray(mask))
        found, found_gradient = values_and_gradient(attend, qkv, gradient)
    expected, expected_gradient = exact_attention(qkv, 2, mask, gradient)
    np.testing.assert_allclose(found, expected, atol=5e-6)
    np.testing.assert_allclose(found_gradient, expected_gradient, atol=2e-5)
    assert not np.any(found[3]) and not np.any(found_gradient[:, 3])
    assert not np.any(np.where(masked, found_gradient[1:], 0))
