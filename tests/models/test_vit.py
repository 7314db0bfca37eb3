"""The encoder and classifier: sizes, numerics, drop path, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import functional
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.models import blocks, patches, vit

IMAGES = jnp.asarray(np.random.default_rng(7).normal(size=(6, 8, 8, 3)), jnp.float32)


def tiny(**changes):
    return vit.VitConfig(**(dict(size="Ti/2", width=16, depth=3, heads=2, dtype="float32") | changes))


@functools.cache
def classifier(classes=5, head_init="small", **changes):
    return functional.Model(lambda r: vit.Classifier(tiny(**changes), (8, 8), classes, head_init=head_init, rngs=r))


@functools.cache
def encoder(side=8, **changes):
    return functional.Model(lambda r: vit.Encoder(tiny(**changes), (side, side), rngs=r))


def encoder_shapes(config, image_size):
    size = (image_size, image_size)
    return functional.flatten(functional.Model(lambda r: vit.Encoder(config, size, rngs=r)).shapes())


@pytest.mark.parametrize(
    ("size", "parameters", "tokens"),
    [
        ("B/16", 85_798_656, 197),
        ("L/16", 303_301_632, 197),
        ("H/14", 630_764_800, 257),
        ("2B/14", 1_890_408_960, 257),
        ("6.5B/14", 6_447_632_384, 257),
    ],
)
def test_published_sizes(size, parameters, tokens):
    shapes = encoder_shapes(vit.VitConfig(size=size), 224)
    assert sum(leaf.size for leaf in shapes.values()) == parameters
    assert shapes["pos_embed"].shape[0] == tokens
    assert all(leaf.dtype == jnp.float32 for leaf in shapes.values())


def test_parameter_paths_and_shapes():
    blocks_of = {
        "norm1/scale": (16,), "norm1/bias": (16,), "norm2/scale": (16,), "norm2/bias": (16,),
        "attn/qkv/kernel": (16, 3, 2, 8), "attn/qkv/bias": (3, 2, 8),
        "attn/proj/kernel": (2, 8, 16), "attn/proj/bias": (16,),
        "mlp/fc1/kernel": (16, 64), "mlp/fc1/bias": (64,), "mlp/fc2/kernel": (64, 16), "mlp/fc2/bias": (16,),
    }  # fmt: skip
    common = {"patch_embed/kernel": (12, 16), "patch_embed/bias": (16,), "pos_embed": (17, 16), "cls_token": (1, 16)}
    common |= {f"blocks/{path}": (3, *shape) for path, shape in blocks_of.items()}
    shapes = {path: leaf.shape for path, leaf in encoder_shapes(tiny(), 8).items()}
    assert shapes == common | {"norm/scale": (16,), "norm/bias": (16,)}
    shapes = {path: leaf.shape for path, leaf in encoder_shapes(tiny(pool="mean", cls_token=False), 8).items()}
    del common["cls_token"]
    assert shapes == common | {"pos_embed": (16, 16), "fc_norm/scale": (16,), "fc_norm/bias": (16,)}


def test_initial_values(quick):
    config = tiny(width=128, depth=2, heads=4)
    params = functional.flatten(
        quick(functional.Model(lambda r: vit.Encoder(config, (8, 8), rngs=r)).init)(jax.random.key(0))
    )
    # Xavier-uniform of the fused matrices: ± sqrt(6 / (fan in + fan out)).
    fans = {"attn/qkv": 128 + 384, "attn/proj": 256, "mlp/fc1": 640, "mlp/fc2": 640}
    bounds = {f"blocks/{name}/kernel": np.sqrt(6 / fan) for name, fan in fans.items()}
    bounds["patch_embed/kernel"] = np.sqrt(6 / (12 + 128))
    for path, bound in bounds.items():
        assert 0.98 * bound < np.abs(params[path]).max() <= bound
        assert np.std(params[path]) == pytest.approx(bound / np.sqrt(3), rel=0.05)
    for path, leaf in params.items():
        if path.endswith("bias"):
            assert not np.any(leaf), path
        if path.endswith("scale"):
            assert np.all(leaf == 1), path
    assert np.std(params["cls_token"]) == pytest.approx(0.02, rel=0.3)
    assert not np.any(params["pos_embed"][0]) and np.any(params["pos_embed"][1])


@pytest.mark.parametrize(("head_init", "deviation"), [("zeros", 0.0), ("small", 2e-5)])
def test_head_init(head_init, deviation, quick):
    model = classifier(classes=400, head_init=head_init)
    head = quick(lambda key: model.init(key)["head"])(jax.random.key(0))
    assert np.std(head["kernel"]) == pytest.approx(deviation, rel=0.05) and not np.any(head["bias"])


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_features_feed_the_head(pool, random_params, run):
    model = classifier(pool=pool)
    params = random_params(model)
    features = run(encoder(pool=pool), params["encoder"], IMAGES, method="features")
    logits = run(model, params, IMAGES)
    assert features.shape == (6, 16) and logits.shape == (6, 5)
    head = params["head"]
    np.testing.assert_allclose(logits, features @ head["kernel"] + head["bias"], atol=1e-6)
    tokens = run(encoder(pool=pool), params["encoder"], IMAGES)
    assert tokens.shape == (6, 17, 16)
    pooled, mean = tokens[:, 0], tokens[:, 1:].mean(1)
    if pool == "mean":
        pooled = (mean - mean.mean(-1, keepdims=True)) / jnp.sqrt(mean.var(-1, keepdims=True) + 1e-6)
        pooled = pooled * params["encoder"]["fc_norm"]["scale"] + params["encoder"]["fc_norm"]["bias"]
    else:
        other = run(encoder(pool=pool), params["encoder"], IMAGES, pool="mean", method="features")
        np.testing.assert_allclose(other, mean, atol=1e-5)
    np.testing.assert_allclose(features, pooled, atol=1e-5)


def test_oblong_images_are_embedded_patch_by_patch(random_params, run):
    """192×256 pixels in patches of 16: 12 rows of 16 patches, each with the position of its row and column."""
    model = functional.Model(lambda r: vit.Encoder(tiny(size="Ti/16", depth=1), (192, 256), rngs=r))
    images = np.random.default_rng(0).normal(size=(1, 192, 256, 3)).astype(np.float32)
    params = random_params(model, grid=(12, 16))
    embed = {name: np.float64(leaf) for name, leaf in params["patch_embed"].items()}
    found = run(model, params, images, method="embed")
    assert found.shape == (1, 192, 16)
    omega = 10000 ** (-np.arange(4) / 4)
    for row, column in [(0, 0), (0, 15), (11, 0), (5, 9), (11, 15)]:
        pixels = images[0, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].reshape(-1)
        position = [f(at * omega) for at in (column, row) for f in (np.sin, np.cos)]
        expected = pixels @ embed["kernel"] + embed["bias"] + np.concatenate(position)
        np.testing.assert_allclose(found[0, 16 * row + column], expected, atol=2e-5)
    assert run(model, params, images).shape == (1, 193, 16)
    init = functional.flatten(model.init(jax.random.key(0)))
    np.testing.assert_array_equal(init["pos_embed"], params["pos_embed"])
    assert vit.forward_flops(tiny(size="Ti/16"), (192, 256)) == vit.forward_flops(tiny(size="Ti/16"), (256, 192))


def test_select_encodes_the_chosen_patches_alone(random_params, run):
    model = encoder(cls_token=False, pool="mean")
    params = random_params(model)
    every = jnp.broadcast_to(jnp.eye(16), (6, 16, 16))
    np.testing.assert_allclose(run(model, params, IMAGES, select=every), run(model, params, IMAGES), atol=1e-6)
    two = jax.nn.one_hot(jnp.array([[3, 9]] * 6), 16)
    seen = run(model, params, IMAGES, select=two)
    blind = patches.unpatchify(patches.patchify(IMAGES, 2) * jnp.sum(two, 1)[:, :, None], 2, (4, 4))
    np.testing.assert_allclose(run(model, params, blind, select=two), seen, atol=1e-6)
    assert seen.shape == (6, 2, 16)


@pytest.mark.parametrize(("positions", "trained"), [("sincos", False), ("learned", True)])
def test_only_learned_positions_have_a_gradient(positions, trained, random_params, quick):
    model = classifier(positions=positions)
    grad = quick(jax.grad(lambda params: model.apply(params, IMAGES).sum()))(random_params(model))
    assert bool(np.any(grad["encoder"]["pos_embed"])) == trained


def test_bfloat16_computes_low_and_keeps_parameters_and_logits_float32(random_params, run):
    low = classifier(dtype="bfloat16")
    params = random_params(low)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(low.shapes()))
    assert run(encoder(dtype="bfloat16"), params["encoder"], IMAGES).dtype == jnp.bfloat16
    features = run(encoder(dtype="bfloat16"), params["encoder"], IMAGES, method="features")
    assert run(low, params, IMAGES).dtype == features.dtype == jnp.float32
    exact = run(encoder(), params["encoder"], IMAGES, method="features")
    assert 0 < np.abs(features - exact).max() < 0.1


def keys(seed):
    return jax.random.split(jax.random.key(seed), len(IMAGES))


def test_remat_changes_no_gradient(random_params, quick):
    def gradient(remat):
        model = classifier(remat=remat, drop_path=0.5)
        loss = lambda params: jnp.square(model.apply(params, IMAGES, keys(3), train=True)).sum()  # noqa: E731
        return quick(jax.value_and_grad(loss))(random_params(model))

    plain = gradient("none")
    for remat in ("full", "dots"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, gradient(remat))


def test_layer_norm_is_its_definition_also_where_eps_matters(run):
    x = np.random.default_rng(0).normal(size=(2, 3, 8)) * np.array([1e-3, 1.0])[:, None, None]
    norm = functional.Model(lambda rngs: blocks.LayerNorm(8, jnp.dtype("float32")))
    params = {"scale": jnp.arange(1.0, 9.0), "bias": jnp.arange(8.0) / 8}
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    expected = expected * np.arange(1, 9) + np.arange(8) / 8
    np.testing.assert_allclose(run(norm, params, jnp.asarray(x, jnp.float32)), expected, atol=1e-4)


def test_drop_path_drops_more_in_later_blocks_and_keeps_the_mean():
    scale = np.asarray(blocks.drop_path(jax.random.split(jax.random.key(0), 4096), rate=0.4, depth=3))
    for layer, rate in enumerate((0.0, 0.2, 0.4)):
        np.testing.assert_allclose(np.unique(scale[layer]), [0, 1 / (1 - rate)] if rate else [1], rtol=1e-6)
        for branch in scale[layer]:
            assert np.mean(branch == 0) == pytest.approx(rate, abs=4.5 * np.sqrt(rate * (1 - rate) / 4096))
    assert np.any(scale[2, 0] != scale[2, 1])


def test_dropped_branches_leave_a_sample_as_it_is(random_params, run):
    block = functional.Model(lambda r: blocks.Block(16, 2, 64, jnp.dtype("float32"), rngs=r))
    params, x = random_params(block), jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 16)), jnp.float32)
    plain = run(block, params, x)
    scaled = run(block, params, x, jnp.array([[1.0, 0.0, 0.0], [1.0, 0.0, 2.0]]))
    np.testing.assert_allclose(scaled[0], plain[0], atol=1e-6)
    np.testing.assert_array_equal(scaled[1], x[1])
    assert np.all(np.any(scaled[2] != x[2], axis=-1)) and np.any(scaled[2] != plain[2])


def test_drop_path_acts_in_training_alone(random_params, run):
    model, plain = classifier(drop_path=0.8), classifier()
    params = random_params(model)
    expected = run(plain, params, IMAGES)
    np.testing.assert_array_equal(run(model, params, IMAGES, keys(1), train=False), expected)
    np.testing.assert_array_equal(run(plain, params, IMAGES, keys(1), train=True), expected)
    one, other = (run(model, params, IMAGES, keys(seed), train=True) for seed in (1, 2))
    assert np.any(one != expected) and np.any(one != other)
    with pytest.raises(ValueError, match="needs a key for each example"):
        run(model, params, IMAGES, None, train=True)


def test_forward_flops_by_hand():
    # Ti/16 at 32 pixels: 4 patches, 5 tokens, width 192, 12 blocks.
    patch_embedding = 4 * 768 * 192
    block = 5 * 192 * (3 * 192 + 192 + 2 * 768) + 2 * 5 * 5 * 192
    assert vit.forward_flops(vit.VitConfig(size="Ti/16"), (32, 32)) == 2 * (patch_embedding + 12 * block)
    assert vit.forward_flops(vit.VitConfig(size="Ti/16"), (32, 32), classes=10) == 2 * (
        patch_embedding + 12 * block + 1920
    )


@pytest.mark.parametrize(
    ("config", "image_size", "message"),
    [
        (vit.VitConfig(size="BB/16"), (224, 224), r"config\.model\.size: 'BB/16' is no size; did you mean 'B/16'"),
        (vit.VitConfig(size="6.5b/14"), (224, 224), "did you mean '6.5B/14'"),
        (vit.VitConfig(size="L"), (224, 224), "did you mean 'L/16'"),
        (vit.VitConfig(size="B/0"), (224, 224), "did you mean 'B/16'"),
        (vit.VitConfig(size="H/14"), (512, 512), r"data\.image_size: 512 .*config\.model\.size = H/14.* such as 518"),
        (vit.VitConfig(size="B/16"), (192, 250), r"config\.data\.image_size: 192x250 .* such as 192x256"),
        (vit.VitConfig(size="B/16"), (8, 8), r"config\.data\.image_size: 8 .* such as 16"),
        (vit.VitConfig(size="B/16", width=100), (224, 224), r"config\.model\.width: 100 .* heads = 12"),
        (vit.VitConfig(size="B/16", cls_token=False), (224, 224), r"config\.model\.pool: 'cls' needs the class token"),
    ],
)
def test_wrong_sizes_are_refused_in_one_line(config, image_size, message):
    with pytest.raises(UserError, match=message) as error:
        functional.Model(lambda r: vit.Encoder(config, image_size, rngs=r))
    assert "\n" not in str(error.value)
