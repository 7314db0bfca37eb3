import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import optim
from mae_pp_jax.core.errors import UserError
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
    return optim.make(config, PARAMS, axes=AXES, **rules, total=total, records=1000, global_batch=10)


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
    np.testing.assert_allclose(optim.global_norm(step), 0.5, rtol=1e-5)


def test_learning_rate_scales_with_the_batch():
    config = config_lib.resolve(optim.OptimConfig, dict(lr=1e-4, lr_batch=256, warmup="0 steps", shape="constant"))
    rules = dict(lr_rules=ALL, decay_rules=ALL)
    made = optim.make(config, PARAMS, axes=AXES, **rules, total=10, records=100, global_batch=4096)
    np.testing.assert_allclose(made.learning_rate(3), 1.6e-3, rtol=1e-6)
