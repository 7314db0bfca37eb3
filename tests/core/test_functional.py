"""The bridge from NNX modules to pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from mae_pp_jax.core import functional


class Affine(nnx.Module):
    """x · kernel + bias · gain, small enough to compute by hand."""

    def __init__(self, width, *, rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (width, width)) / width**0.5)
        self.bias = nnx.Param(jax.random.normal(rngs.params(), (width,)))

    def __call__(self, x, gain=1.0):
        return jnp.tanh(checkpoint_name(x @ self.kernel[...], "hidden")) + self.bias[...] * gain


class Tower(nnx.Module):
    def __init__(self, width, depth, remat="none", *, rngs):
        self.first = Affine(width, rngs=rngs)
        self.blocks = functional.stack(lambda r: Affine(width, rngs=r), depth, rngs)
        self.remat = remat

    def __call__(self, x, gains):
        return functional.scan(self.blocks, self.first(x), gains, remat=self.remat, saved=("hidden",))

    def head(self, x, *, scale):
        return self.first(x) * scale


def tower(width=4, depth=3, remat="none"):
    return functional.Model(lambda rngs: Tower(width, depth, remat, rngs=rngs))


def test_parameters_are_plain_nested_dicts_with_the_announced_shapes():
    model = tower()
    params = jax.jit(model.init)(jax.random.key(0))
    assert {path: leaf.shape for path, leaf in functional.flatten(params).items()} == {
        "blocks/bias": (3, 4),
        "blocks/kernel": (3, 4, 4),
        "first/bias": (4,),
        "first/kernel": (4, 4),
    }
    assert type(params) is dict and type(params["blocks"]) is dict
    assert isinstance(params["first"]["bias"], jax.Array)
    specs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    assert model.shapes() == specs
    assert jax.eval_shape(model.init, jax.random.key(0)) == specs


def test_init_depends_on_the_key_alone():
    model = tower()
    one, same, other = (model.init(jax.random.key(seed)) for seed in (1, 1, 2))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, same)))
    assert not any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).any()), one, other)))


def test_each_layer_of_a_stack_has_its_own_init():
    kernels = tower().init(jax.random.key(0))["blocks"]["kernel"]
    assert not np.any(np.isclose(kernels[0], kernels[1])) and not np.any(np.isclose(kernels[1], kernels[2]))


def test_apply_equals_a_loop_over_the_layers():
    params = tower().init(jax.random.key(0))
    x, gains = jnp.linspace(-1, 1, 8).reshape(2, 4), jnp.array([1.0, -2.0, 0.5])
    expected = np.tanh(x @ params["first"]["kernel"]) + params["first"]["bias"]
    for kernel, bias, gain in zip(params["blocks"]["kernel"], params["blocks"]["bias"], gains, strict=True):
        expected = np.tanh(expected @ kernel) + bias * gain
    np.testing.assert_allclose(jax.jit(tower().apply)(params, x, gains), expected, rtol=2e-6, atol=1e-6)


def test_apply_calls_other_methods():
    model = tower()
    params, x = model.init(jax.random.key(0)), jnp.ones((2, 4))
    single = model.apply(params, x, method="head", scale=1.0)
    np.testing.assert_allclose(model.apply(params, x, method="head", scale=3.0), 3 * single, rtol=1e-6)


def test_apply_refuses_other_parameters():
    params = tower().init(jax.random.key(0))
    params["first"]["weight"] = params["first"].pop("kernel")
    with pytest.raises(ValueError, match=r"missing \['first/kernel'\], unknown \['first/weight'\]"):
        tower().apply(params, jnp.ones((2, 4)), jnp.ones(3))


def test_program_does_not_grow_with_depth():
    def lines(depth):
        model = tower(depth=depth)
        grad = jax.grad(lambda params, x, gains: model.apply(params, x, gains).sum())
        return len(jax.jit(grad).lower(model.shapes(), jnp.ones((2, 4)), jnp.ones(depth)).as_text().splitlines())

    assert lines(2) == lines(20)


def test_remat_saves_memory_and_changes_no_gradient():
    x, gains = jnp.linspace(-1, 1, 64 * 16).reshape(64, 16), jnp.ones(12)
    memory, grads = {}, {}
    for remat in functional.REMAT:
        model = tower(width=16, depth=12, remat=remat)
        params = model.init(jax.random.key(0))
        loss = lambda params, model=model: jnp.square(model.apply(params, x, gains)).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        memory[remat], grads[remat] = compiled.memory_analysis().temp_size_in_bytes, compiled(params)
    for remat in ("full", "dots"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), grads["none"], grads[remat])
    assert memory["full"] < memory["dots"] <= memory["none"]


def test_flatten_follows_jax_order_and_unflatten_inverts_it():
    tree = {"b": {"z": 1, "a": 2}, "a_": {"x": {"y": 3}}, "a": 4}
    flat = functional.flatten(tree)
    assert list(flat.items()) == [("a", 4), ("a_/x/y", 3), ("b/a", 2), ("b/z", 1)]
    assert list(flat.values()) == jax.tree.leaves(tree)
    assert functional.unflatten(flat) == tree


@pytest.mark.parametrize("flat", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}])
def test_unflatten_refuses_a_leaf_that_is_also_a_branch(flat):
    with pytest.raises(ValueError, match="leaf"):
        functional.unflatten(flat)


@pytest.mark.parametrize("tree", [{"a/b": 1}, {"a": {0: 1}}])
def test_flatten_refuses_keys_that_make_no_path(tree):
    with pytest.raises(ValueError, match="text without '/'"):
        functional.flatten(tree)
