"""The masked autoencoder against a plain NumPy float64 version of it, and its properties one by one."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from mae_pp_jax.core import functional
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.models import mae, patches, vit

VIT = vit.VitConfig(size="Ti/2", width=16, depth=2, heads=2, positions="sincos", dtype="float32")
MAE = mae.MaeConfig(decoder_width=12, decoder_depth=2, decoder_heads=3)
BATCH, PATCHES, VISIBLE, PATCH = 3, 16, 4, 2


@functools.cache
def build(vit_config=VIT, config=MAE, size=(8, 8)):
    return functional.Model(lambda r: mae.Mae(vit_config, config, size, rngs=r))


@pytest.fixture
def example(random_params):
    """Of a model: parameters, images and noise for the mask."""

    def draw(model):
        rng = np.random.default_rng(1)
        images = jnp.asarray(rng.normal(size=(BATCH, 8, 8, 3)), jnp.float32)
        return random_params(model), images, jnp.asarray(rng.uniform(size=(BATCH, PATCHES)), jnp.float32)

    return draw


# The reference: float64, one image at a time, sorting and indexing where the model counts and multiplies.


def layer_norm(x, p, at):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * p[at + "/scale"] + p[at + "/bias"]


def dense(x, p, at):
    return x @ p[at + "/kernel"] + p[at + "/bias"]


def transformer(x, p, at):
    stacked = {path.removeprefix(at): leaf for path, leaf in p.items() if path.startswith(at)}
    for layer in range(len(stacked["/norm1/bias"])):
        b = {path: leaf[layer] for path, leaf in stacked.items()}
        y, mixed = layer_norm(x, b, "/norm1"), 0
        for head in range(b["/attn/qkv/kernel"].shape[2]):
            q, k, v = (y @ b["/attn/qkv/kernel"][:, i, head] + b["/attn/qkv/bias"][i, head] for i in range(3))
            scores = np.exp(q @ k.T / np.sqrt(q.shape[1]))
            mixed = mixed + scores / scores.sum(-1, keepdims=True) @ v @ b["/attn/proj/kernel"][head]
        x = x + mixed + b["/attn/proj/bias"]
        y = dense(layer_norm(x, b, "/norm2"), b, "/mlp/fc1")
        x = x + dense(y * (1 + erf(y / np.sqrt(2))) / 2, b, "/mlp/fc2")
    return x


def reference(p, image, noise):
    """Loss, prediction [patches, pixels] and mask [patches] of one image, after He et al. 2021."""
    patch = math.isqrt(len(p["encoder/patch_embed/kernel"]) // 3)
    tops, lefts = (range(0, side, patch) for side in image.shape[:2])
    pixels = np.array([image[y : y + patch, x : x + patch].ravel() for y in tops for x in lefts])
    count, visible = len(pixels), len(pixels) // 4
    order = np.argsort(noise, kind="stable")
    x = dense(pixels, p, "encoder/patch_embed") + p["encoder/pos_embed"][1:]
    x = np.concatenate([p["encoder/cls_token"] + p["encoder/pos_embed"][:1], x[order[:visible]]])
    x = dense(layer_norm(transformer(x, p, "encoder/blocks"), p, "encoder/norm"), p, "decoder/embed")
    shuffled = np.concatenate([x[1:], np.repeat(p["decoder/mask_token"], count - visible, 0)])
    x = np.concatenate([x[:1], shuffled[np.argsort(order, kind="stable")]]) + p["decoder/pos_embed"]
    x = layer_norm(transformer(x, p, "decoder/blocks"), p, "decoder/norm")
    prediction = dense(x, p, "decoder/pred")[1:]
    target = (pixels - pixels.mean(1, keepdims=True)) / np.sqrt(pixels.var(1, ddof=1, keepdims=True) + 1e-6)
    mask = np.zeros(count)
    mask[order[visible:]] = 1
    return np.sum(mask * ((prediction - target) ** 2).mean(1)) / mask.sum(), prediction, mask


def test_loss_and_prediction_equal_the_reference(example, run):
    params, images, noise = example(build())
    out = run(build(), params, images, noise=noise)
    p = {path: np.float64(leaf) for path, leaf in functional.flatten(params).items()}
    for i in range(BATCH):
        loss, prediction, mask = reference(p, np.float64(images[i]), np.float64(noise[i]))
        assert float(out["loss"][i]) == pytest.approx(loss, rel=2e-6)
        np.testing.assert_allclose(out["prediction"][i], prediction, atol=1e-5)
        np.testing.assert_array_equal(out["mask"][i], mask)


def test_oblong_images_equal_the_reference_and_are_painted_upright(random_params, run):
    """192×256 pixels in patches of 16: 12 rows of 16 patches."""
    model = build(
        dataclasses.replace(VIT, size="Ti/16", depth=1), dataclasses.replace(MAE, decoder_depth=1), (192, 256)
    )
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.normal(size=(1, 192, 256, 3)), jnp.float32)
    noise = jnp.asarray(rng.permutation(192)[None], jnp.float32)
    params = random_params(model, grid=(12, 16))
    out = run(model, params, images, noise=noise)
    p = {path: np.float64(leaf) for path, leaf in functional.flatten(params).items()}
    loss, prediction, mask = reference(p, np.float64(images[0]), np.float64(noise[0]))
    assert float(out["loss"][0]) == pytest.approx(loss, rel=2e-6)
    np.testing.assert_allclose(out["prediction"][0], prediction, atol=1e-5)
    pictures = run(model, params, images, keys(0)[:1], method="reconstruct")
    kept = np.asarray(pictures["masked"][0] != 0).any(-1)
    assert kept.shape == (192, 256) and kept.reshape(12, 16, 16, 16).all((1, 3)).sum() == 48
    np.testing.assert_allclose(np.asarray(pictures["reconstruction"][0])[kept], np.asarray(images[0])[kept], atol=1e-6)


def test_gradient_equals_central_differences_of_the_reference(example, quick):
    params, images, noise = example(build())
    grad = quick(jax.grad(lambda params: build().apply(params, images, noise=noise)["loss"].mean()))(params)
    p = {path: np.float64(leaf) for path, leaf in functional.flatten(params).items()}
    images, noise, rng = np.float64(images), np.float64(noise), np.random.default_rng(0)

    def loss(path, shift):
        moved = p | {path: p[path] + shift}
        return np.mean([reference(moved, image, row)[0] for image, row in zip(images, noise, strict=True)])

    for path, leaf in functional.flatten(grad).items():
        if path.endswith("pos_embed"):
            assert not np.any(leaf), f"{path} must stay fixed"
            continue
        direction = rng.normal(size=leaf.shape)
        direction *= 1e-5 / np.linalg.norm(direction)
        slope = (loss(path, direction) - loss(path, -direction)) / 2
        assert abs(np.vdot(leaf, direction) - slope) < 1e-5 * np.linalg.norm(leaf) * 1e-5 + 1e-13, path


def test_every_patch_is_masked_equally_often_and_each_image_exactly(example, run):
    images = jnp.zeros((2048, 8, 8, 3))
    model = build()
    mask = run(model, example(model)[0], images, jax.random.split(jax.random.key(1), 2048))["mask"]
    np.testing.assert_array_equal(mask.sum(1), PATCHES - VISIBLE)
    np.testing.assert_allclose(mask.mean(0), 0.75, atol=4.5 * np.sqrt(0.75 * 0.25 / 2048))
    assert len(np.unique(mask, axis=0)) > 1000  # of 1820 possible ones; images draw apart


def keys(seed):
    return jax.random.split(jax.random.key(seed), BATCH)


def test_keys_decide_the_mask(example, run):
    model = build()
    params, images, _ = example(model)
    one, same, other = (run(model, params, images, keys(seed))["mask"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)
    with pytest.raises(ValueError, match="keys or noise"):
        run(model, params, images)


def change_patches(images, which):
    """Other pixels in the patches where `which` [batch, patches] is 1."""
    pixels = patches.patchify(images, PATCH)
    other = np.random.default_rng(9).normal(size=pixels.shape)
    return patches.unpatchify(jnp.where(which[:, :, None] == 1, other, pixels), PATCH, (4, 4))


def test_encoder_never_sees_masked_patches(example, run):
    params, images, noise = example(build())
    out = run(build(), params, images, noise=noise)
    changed = run(build(), params, change_patches(images, out["mask"]), noise=noise)
    np.testing.assert_allclose(changed["prediction"], out["prediction"], atol=1e-6)
    assert np.all(changed["loss"] != out["loss"])


def test_loss_ignores_visible_patches(example, run):
    params, images, noise = example(build())
    params["decoder"]["pred"]["kernel"] = jnp.zeros_like(params["decoder"]["pred"]["kernel"])  # the same for any input
    out = run(build(), params, images, noise=noise)
    changed = run(build(), params, change_patches(images, 1 - out["mask"]), noise=noise)
    np.testing.assert_array_equal(changed["loss"], out["loss"])


def test_plain_target_is_the_pixels(example, run):
    model = build(config=dataclasses.replace(MAE, normalize_target=False))
    params, images, noise = example(model)
    out = run(model, params, images, noise=noise)
    error = np.square(out["prediction"] - patches.patchify(images, PATCH)).mean(-1)
    np.testing.assert_allclose(out["loss"], (error * out["mask"]).sum(1) / (PATCHES - VISIBLE), rtol=1e-5)


def test_reconstruct_keeps_visible_pixels_and_undoes_the_normalisation(example, run):
    model = build()
    params, images, _ = example(model)
    out, pictures = run(model, params, images, keys(5)), run(model, params, images, keys(5), method="reconstruct")
    original, mask = np.float64(patches.patchify(images, PATCH)), np.asarray(out["mask"])[:, :, None]
    np.testing.assert_allclose(patches.patchify(pictures["masked"], PATCH), original * (1 - mask), atol=1e-6)
    mean, variance = original.mean(-1, keepdims=True), original.var(-1, ddof=1, keepdims=True)
    painted = out["prediction"] * np.sqrt(variance + 1e-6) + mean
    expected = np.where(mask == 1, painted, original)
    np.testing.assert_allclose(patches.patchify(pictures["reconstruction"], PATCH), expected, atol=1e-5)


def test_works_without_class_token(example, run):
    model = build(dataclasses.replace(VIT, cls_token=False, pool="mean"))
    params, images, noise = example(model)
    assert params["decoder"]["pos_embed"].shape == (PATCHES, 12) and "norm" in params["encoder"]
    out = run(model, params, images, noise=noise)
    assert out["prediction"].shape == (BATCH, PATCHES, 12) and np.all(np.isfinite(out["loss"]))


def test_bfloat16_is_close_and_returns_float32(example, run):
    low = build(dataclasses.replace(VIT, dtype="bfloat16"))
    params, images, noise = example(low)
    out, exact = (run(model, params, images, noise=noise) for model in (low, build()))
    assert {leaf.dtype for leaf in jax.tree.leaves([out, params])} == {jnp.dtype("float32")}
    np.testing.assert_allclose(out["loss"], exact["loss"], rtol=0.03)
    assert np.any(out["loss"] != exact["loss"])


def test_drop_path_acts_in_training_alone(example, run):
    model = build(dataclasses.replace(VIT, drop_path=0.9))
    params, images, noise = example(model)
    still, plain = run(model, params, images, keys(0), noise=noise), run(build(), params, images, noise=noise)
    np.testing.assert_array_equal(still["loss"], plain["loss"])
    assert np.any(run(model, params, images, keys(0), noise=noise, train=True)["loss"] != plain["loss"])


@pytest.mark.parametrize(
    ("size", "millions"), [("B/16", 26.11), ("L/16", 26.24), ("H/14", 26.31), ("2B/14", 26.97), ("6.5B/14", 27.75)]
)
def test_published_decoder_sizes(size, millions):
    model = functional.Model(lambda r: mae.Mae(vit.VitConfig(size=size), mae.MaeConfig(), (224, 224), rngs=r))
    decoder = sum(leaf.size for leaf in jax.tree.leaves(model.shapes()["decoder"]))
    assert round(decoder / 1e6, 2) == millions


def test_visible_patches_of_the_paper():
    assert [mae.visible_patches(mae.MaeConfig(), patches) for patches in (196, 256)] == [49, 64]


def test_forward_flops_by_hand():
    encoder = vit.forward_flops(VIT, (8, 8), tokens=5)
    block = 17 * 12 * (3 * 12 + 12 + 2 * 48) + 2 * 17 * 17 * 12
    assert mae.mae_forward_flops(VIT, MAE, (8, 8)) == encoder + 2 * (5 * 16 * 12 + 2 * block + 17 * 12 * 12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(MAE, mask_ratio=1.0), r"mask_ratio: 1\.0 of 16 patches leaves 0 visible"),
        (dataclasses.replace(MAE, mask_ratio=0.0), r"mask_ratio: 0\.0 of 16 patches leaves 16 visible"),
        (dataclasses.replace(MAE, decoder_heads=5), r"decoder_width: 12 .* decoder_heads = 5"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(config, message):
    with pytest.raises(UserError, match=message) as error:
        build(config=config)
    assert "\n" not in str(error.value)
