import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import optim
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten, unflatten
from mae_pp_jax.models import layer_decay

PARAMS = {
    "encoder": {
        "patch_embed": {"kernel": jnp.full((3, 4), 0.5), "bias": jnp.full((4,), 0.5)},
        "blocks": {"fc": {"kernel": jnp.full((2, 4, 4), 0.5), "bias": jnp.full((2, 4), 0.5)}},
    },
    "head": {"kernel": jnp.full((4, 2), 0.5), "bias": jnp.zeros((2,))},
}
ALL = ((".*", 1.0),)
AXES = {
    "encoder/blocks/fc/kernel": ("layers", None, None),
    "encoder/blocks/fc/bias": ("layers", None),
    "encoder/patch_embed/kernel": (None, None),
    "encoder/patch_embed/bias": (None,),
    "head/kernel": (None, None),
    "head/bias": (None,),
}


def build(lr_rules=ALL, decay_rules=optim.NO_DECAY_ON_BIAS_AND_SCALE, total=100, **keys):
    keys = dict(dict(lr=0.1, lr_batch=0, warmup="0 steps", shape="constant"), **keys)
    config = config_lib.resolve(optim.OptimConfig, keys)
    rules = dict(lr_rules=lr_rules, decay_rules=decay_rules)
    return optim.make(config, PARAMS, axes=AXES, **rules, total=total, records=1000, global_batch=10, model_batch=10)


def updated(optimizer, grads):
    trainable, frozen = optimizer.split(PARAMS)
    new, _ = optimizer.update(optimizer.split(grads)[0], optimizer.init(PARAMS), trainable)
    return optim.merge(new, frozen)


def test_first_adamw_step_is_lr_times_sign_plus_decay():
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    new = updated(build(weight_decay=0.2), grads)
    # Adam's first step is lr · g/|g|; the decay lr · wd · p acts on kernels alone.
    np.testing.assert_allclose(new["head"]["kernel"], 0.5 - 0.1 * (1 + 0.2 * 0.5), rtol=1e-5)
    np.testing.assert_allclose(new["encoder"]["patch_embed"]["bias"], 0.5 - 0.1, rtol=1e-5)


def test_first_moment_in_bfloat16_takes_half_and_updates_alike():
    grads = jax.tree.map(lambda p: jnp.linspace(-1, 1, p.size).reshape(p.shape), PARAMS)
    low, high = build(moment_dtype="bfloat16"), build()
    moments = [s for s in jax.tree.leaves(low.init(PARAMS)) if s.dtype == jnp.bfloat16]
    assert sum(m.size for m in moments) == sum(p.size for p in jax.tree.leaves(PARAMS))
    updates = [jax.tree.map(jnp.subtract, updated(optimizer, grads), PARAMS) for optimizer in (low, high)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02), *updates)


def test_layer_decay_gives_each_stacked_block_its_own_factor():
    new = updated(build(lr_rules=layer_decay.factors(0.5, 2), weight_decay=0.0), jax.tree.map(jnp.ones_like, PARAMS))
    moved = jax.tree.map(lambda a, b: np.asarray((a - b) / 0.1), PARAMS, new)
    np.testing.assert_allclose(moved["encoder"]["patch_embed"]["kernel"], 0.125, rtol=1e-4)
    np.testing.assert_allclose(moved["encoder"]["blocks"]["fc"]["kernel"][0], 0.25, rtol=1e-4)
    np.testing.assert_allclose(moved["encoder"]["blocks"]["fc"]["bias"][1], 0.5, rtol=1e-4)
    np.testing.assert_allclose(moved["head"]["kernel"], 1.0, rtol=1e-4)


def test_independent_models_learn_at_rates_of_their_own():
    """Also where the leaf has layers as well: a factor belongs to the axis of the models."""
    axes = {"own/kernel": ("splits", "layers", None), "own/bias": ("splits", None)}
    params = unflatten({"own/kernel": jnp.full((2, 2, 3), 0.5), "own/bias": jnp.full((2, 3), 0.5)})
    config = config_lib.resolve(
        optim.OptimConfig, dict(name="sgd", lr=0.1, lr_batch=0, warmup="0 steps", shape="constant")
    )
    optimizer = optim.make(
        dataclasses.replace(config, weight_decay=0.0),
        params,
        axes=axes,
        lr_rules=((".*", optim.PerModel((1.0, 0.25))),),
        decay_rules=optim.NO_DECAY_ON_BIAS_AND_SCALE,
        **dict(total=10, records=10, global_batch=10, model_batch=10),
    )
    new, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    for leaf in jax.tree.leaves(new):
        np.testing.assert_allclose(leaf[0], 0.4, rtol=1e-6)
        np.testing.assert_allclose(leaf[1], 0.475, rtol=1e-6)


def test_frozen_leaves_have_no_state_and_do_not_move():
    optimizer = build(lr_rules=(("encoder/.*", optim.FROZEN), (".*", 1.0)))
    new = updated(optimizer, jax.tree.map(jnp.ones_like, PARAMS))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, new["encoder"], PARAMS["encoder"]))
    assert not jnp.array_equal(new["head"]["kernel"], PARAMS["head"]["kernel"])
    state_sizes = sum(leaf.size for leaf in jax.tree.leaves(optimizer.init(PARAMS)) if leaf.ndim)
    assert state_sizes == 2 * (8 + 2)


def test_rules_must_cover_every_leaf_and_leave_something_to_train():
    with pytest.raises(UserError, match="no rule covers the parameter head/bias"):
        build(lr_rules=(("encoder/.*|head/kernel", 1.0),))
    with pytest.raises(UserError, match="every parameter is frozen"):
        build(lr_rules=((".*", optim.FROZEN),))


def test_lars_scales_matrices_by_trust_ratio_and_leaves_biases():
    new = updated(build(name="lars", weight_decay=0.0, lr=1.0), jax.tree.map(lambda p: 2.0 * jnp.ones_like(p), PARAMS))
    # trust = 0.001 · |p| / |g| = 0.001 · 0.5 / 2, times g = 2
    np.testing.assert_allclose(new["head"]["kernel"], 0.5 - 0.001 * 0.5, rtol=1e-5)
    np.testing.assert_allclose(new["head"]["bias"], -2.0, rtol=1e-5)


def test_clip_bounds_the_global_norm():
    new = updated(build(name="sgd", b1=0.0, weight_decay=0.0, lr=1.0, clip=0.5), jax.tree.map(jnp.ones_like, PARAMS))
    step = jax.tree.map(lambda a, b: a - b, PARAMS, new)
    np.testing.assert_allclose(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(step))), 0.5, rtol=1e-5)


# Every way in which a parameter can be stacked: path → (axes, shape of the parameter of one layer of one model).
STACKED = {
    "blocks/qkv/kernel": (("layers", None, None, None, None), (4, 3, 2, 2)),
    "blocks/qkv/bias": (("layers", None, None, None), (3, 2, 2)),
    "blocks/gain": (("layers", None), (4,)),  # a vector by its axes alone
    "cls_token": ((None, None), (1, 4)),
    "heads/kernel": (("splits", None, None), (4, 3)),
    "heads/bias": (("splits", None), (3,)),
    "heads/temperature": (("splits",), ()),
    "adapters/kernel": (("splits", "layers", None, None), (4, 4)),
}
VECTORS = ("blocks/qkv/bias", "blocks/gain", "heads/bias", "heads/temperature")  # of one axis, or none, in PyTorch
SIZES = {"layers": 2, "splits": 3}


def stacked(rng, only=STACKED):
    shapes = {p: (*(SIZES[a] for a in axes if a in SIZES), *shape) for p, (axes, shape) in STACKED.items() if p in only}
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def parts(path, value):
    """The parameters of single layers and models that a stack holds, as views."""
    stacks = tuple(SIZES[axis] for axis in STACKED[path][0] if axis in SIZES)
    return [value[index] for index in np.ndindex(*stacks)]


def trained(params, grads, lr_rules=ALL, **keys):
    """Parameters after the updates of `grads`, a list of {path: array}."""
    config = config_lib.resolve(optim.OptimConfig, dict(lr_batch=0, warmup="0 steps", shape="constant", **keys))
    axes = {path: STACKED[path][0] for path in params}
    rules = dict(lr_rules=lr_rules, decay_rules=ALL, total=10, records=100, global_batch=10, model_batch=10)
    optimizer = optim.make(config, unflatten(params), axes=axes, **rules)
    state, now = optimizer.init(unflatten(params)), unflatten(params)
    for grad in grads:
        now, state = optimizer.update(unflatten(grad), state, now)
    return flatten(now)


def test_lars_takes_each_layer_of_each_model_for_itself():
    """Against LARS as facebookresearch/mae util/lars.py writes it, one parameter after another."""
    rng = np.random.default_rng(0)
    params, grads = stacked(rng), [stacked(rng) for _ in range(3)]
    new = trained(params, grads, name="lars", lr=2.0, b1=0.9, weight_decay=0.1)
    for path, value in params.items():
        lists = zip(*(parts(path, part) for part in (value, new[path], *(grad[path] for grad in grads))), strict=True)
        for param, found, *gradients in lists:
            param, momentum = param.astype(np.float64), 0.0
            for update in gradients:
                if path not in VECTORS:
                    update = update + 0.1 * param
                    update = update * 0.001 * np.linalg.norm(param) / np.linalg.norm(update)
                momentum = 0.9 * momentum + update
                param = param - 2.0 * momentum
            np.testing.assert_allclose(found, param, rtol=2e-5, atol=2e-5, err_msg=path)


def test_lars_leaves_what_has_no_size():
    params = {"heads/kernel": np.zeros((3, 4, 3), np.float32)}
    grads = {"heads/kernel": np.ones((3, 4, 3), np.float32)}
    grads["heads/kernel"][1] = 0.0
    new = trained(params, [grads], name="lars", lr=0.5, weight_decay=0.0)["heads/kernel"]
    np.testing.assert_allclose(new[:, 0, 0], [-0.5, 0.0, -0.5])


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_models_side_by_side_train_as_each_would_alone(name):
    """Also where gradients of one are large, so that its clipping, or what LARS makes of it, would reach the others."""
    rng = np.random.default_rng(1)
    own = [path for path in STACKED if path.startswith(("heads", "adapters"))]
    params, grads = stacked(rng, own), [stacked(rng, own) for _ in range(3)]
    for grad in grads:
        for value in grad.values():
            value[2] *= 100
    keys = dict(name=name, lr=0.1, weight_decay=0.1, clip=1.0)
    together = trained(params, grads, **keys)
    for split in range(3):
        alone = [{path: value[split : split + 1] for path, value in tree.items()} for tree in (params, *grads)]
        for path, value in trained(alone[0], alone[1:], **keys).items():
            np.testing.assert_allclose(together[path][split], value[0], rtol=1e-6, atol=1e-7, err_msg=path)


def test_clip_takes_all_layers_of_a_model_and_each_model_apart():
    rng = np.random.default_rng(2)
    grads = stacked(rng)
    grads["heads/kernel"][2] *= 10
    params = jax.tree.map(np.zeros_like, grads)
    new = trained(params, [grads], name="sgd", lr=1.0, b1=0.0, weight_decay=0.0, clip=0.5)
    shared = [path for path in STACKED if "splits" not in STACKED[path][0]]
    whole = sum(np.sum(np.square(grads[path], dtype=np.float64)) for path in shared)
    own = [path for path in STACKED if path not in shared]
    norms = [np.sqrt(whole + sum(np.sum(np.square(grads[p][s], dtype=np.float64)) for p in own)) for s in range(3)]
    for path in own:
        for split, norm in enumerate(norms):
            np.testing.assert_allclose(new[path][split], -grads[path][split] * 0.5 / norm, rtol=1e-5, err_msg=path)
    for path in shared:  # belongs to all three models: what the largest norm asks for
        np.testing.assert_allclose(new[path], -grads[path] * 0.5 / max(norms), rtol=1e-5, err_msg=path)
    axes = unflatten({path: STACKED[path][0] for path in grads})
    np.testing.assert_allclose(optim.model_norms(unflatten(grads), axes), norms, rtol=1e-5)


def test_factors_per_layer_lie_along_the_layers():
    ones = {"adapters/kernel": np.ones((3, 2, 4, 4), np.float32)}
    factors = ((".*", np.asarray([0.5, 2.0])),)
    new = trained(ones, [ones], lr_rules=factors, name="sgd", lr=1.0, weight_decay=0.0)
    np.testing.assert_allclose(new["adapters/kernel"][:, :, 0, 0], [[0.5, -1.0]] * 3)


def test_learning_rate_scales_with_the_batch():
    config = config_lib.resolve(optim.OptimConfig, dict(lr=1e-4, lr_batch=256, warmup="0 steps", shape="constant"))
    rules = dict(lr_rules=ALL, decay_rules=ALL, total=10, records=100)
    for model_batch, wanted in [(4096, 1.6e-3), (1024, 4e-4)]:
        made = optim.make(config, PARAMS, axes=AXES, **rules, global_batch=4096, model_batch=model_batch)
        np.testing.assert_allclose(made.learning_rate(3), wanted, rtol=1e-6)


def test_a_learning_rate_that_scaling_leaves_next_to_nothing_of_is_warned_of(caplog):
    for lr_batch in (10, 1000, 0):
        build(lr=4e-4, lr_batch=lr_batch)
    assert not caplog.records
    build(lr=4e-4, lr_batch=1001)
    (record,) = caplog.records
    assert "0.0004 at a batch of 1001 becomes 4e-06 at 10, less than a hundredth" in record.getMessage()
