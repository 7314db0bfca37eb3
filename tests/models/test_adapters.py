"""Adapters of a frozen encoder: what they change at their start and in training; their numbers are in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import Model, flatten
from mae_pp_jax.models import adapters, vit

CONFIG = config_lib.resolve(vit.VitConfig, dict(size="Ti/4", width=16, depth=2, heads=2))
DIMS = dict(depth=2, width=16, mlp=64, patch=4)
MODEL = Model(lambda rngs: vit.Encoder(CONFIG, (8, 8), rngs=rngs))
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32))


def config(kind, **keys):
    return config_lib.resolve(adapters.AdapterConfig, dict(kind=kind, **keys))


def fresh(own, seed=0):
    return adapters.init(own, jax.random.key(seed), **DIMS)


@pytest.fixture
def encode(random_params, quick):
    params = random_params(MODEL)

    def call(own=None, leaves=None, keys=None):
        ready = None if own is None else adapters.ready(own, leaves, keys)
        return np.asarray(quick(MODEL.apply)(params, IMAGES, adapters=ready))

    return call


def test_adaptformer_and_lora_start_as_the_encoder_to_the_bit(encode):
    plain = encode()
    for own in (config("adaptformer"), config("lora", targets=adapters.TARGETS)):
        np.testing.assert_array_equal(encode(own, fresh(own)), plain)
    for kind in adapters.VPT:  # its tokens are attended to from the start
        own = config(kind, tokens=7)
        prompted = encode(own, fresh(own))
        assert prompted.shape == plain.shape and np.abs(prompted - plain).max() > 1e-3


def test_without_adapters_the_program_is_the_same():
    params = MODEL.shapes()
    without, none = (
        jax.jit(lambda p, x, kwargs=kwargs: MODEL.apply(p, x, **kwargs)).lower(params, IMAGES).as_text()
        for kwargs in ({}, {"adapters": adapters.ready(config("none"), {})})
    )
    assert without == none


@pytest.mark.parametrize("kind", ["vpt_shallow", "vpt_deep", "adaptformer"])
def test_dropout_acts_in_training_alone_and_by_the_key_of_an_example(encode, kind):
    own = config(kind, dropout=0.5)
    leaves = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), fresh(own))
    keys = jax.random.split(jax.random.key(1), 3)
    once, swapped, still = encode(own, leaves, keys), encode(own, leaves, keys[::-1]), encode(own, leaves)
    assert np.abs(once - still).max() > 1e-3
    np.testing.assert_array_equal(once[1], swapped[1])
    assert np.abs(once[0] - swapped[0]).max() > 1e-3
    np.testing.assert_array_equal(still, encode(config(kind, dropout=0.0), leaves, keys))


def test_dropout_keeps_the_mean():
    own = config("vpt_shallow", dropout=0.25)
    prompt = {"prompt": jnp.ones((4, 16))}
    kept = adapters.ready(own, prompt, jax.random.split(jax.random.key(0), 200))["prompt"]
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
    assert kept.shape == (200, 4, 16) and abs(float(kept.mean()) - 1) < 0.02


def test_initial_values_are_those_of_the_sources():
    vpt, lora = (flatten(fresh(config(kind))) for kind in ("vpt_deep", "lora"))
    bound = np.sqrt(6 / (3 * 4 * 4 + 16))
    assert vpt["prompts"].shape == (2, 5, 16) and 0.9 * bound < np.abs(vpt["prompts"]).max() <= bound
    assert not np.array_equal(*vpt["prompts"])
    down = flatten(fresh(config("adaptformer")))["parallel/down/kernel"]
    assert 0.22 < np.abs(down).max() <= 0.25 and lora["lora/q/a"].shape == (2, 16, 8)
    more = flatten(fresh(config("lora", targets=("fc2", "q"))))
    np.testing.assert_array_equal(more["lora/q/a"], lora["lora/q/a"])  # whatever else is a target
    assert not np.any(lora["lora/v/b"]) and more["lora/fc2/a"].shape == (2, 64, 8)


@pytest.mark.parametrize(
    "keys, said",
    [
        (dict(kind="lora", targets=("q", "qkv")), "adapter.targets: 'qkv' is not one of q, k, v, proj, fc1, fc2"),
        (dict(kind="lora", targets=()), "adapter.targets: name one or more"),
        (dict(kind="lora", targets=("q", "q")), "each once"),
        (dict(kind="vpt_deep", tokens=0), "config.tokens: must be at least 1, got 0"),
        (dict(kind="lora", rank=0), "config.rank: must be at least 1, got 0"),
        (dict(kind="prefix"), "config.kind: 'prefix' is not one of none, vpt_shallow"),
    ],
)
def test_what_cannot_be_is_refused(keys, said):
    with pytest.raises(UserError, match=said):
        config(**keys)
