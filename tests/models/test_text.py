"""Text encoders: sizes, positions and padding, dropout, and how their tables lie on a mesh."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import partition, program
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import Model, flatten
from mae_pp_jax.core.optim import FROZEN
from mae_pp_jax.core.stage import Stage, StageConfig
from mae_pp_jax.models import text

TINY = dict(vocabulary=52, positions=12, width=16, depth=2, heads=2, mlp=24)
ROBERTA = {"size": "xlmr_base", **TINY}
BERT = {"size": "minilm_l6", **TINY}
TEXTS = np.array([[0, 7, 9, 30, 2, 1, 1], [0, 50, 4, 5, 6, 7, 2]], np.int32)  # the first of 5 tokens, then padding


def config_of(**keys):
    return config_lib.resolve(text.TextConfig, keys)


def model_of(**keys):
    config = config_of(**keys)
    return Model(lambda rngs: text.TextEncoder(config, rngs=rngs))


@pytest.mark.parametrize(
    ("size", "published", "heads_and_types"),
    [
        # transformers' models besides have a pooler (width² + width) and rows of token types.
        ("xlmr_base", 278_043_648, 768**2 + 768 + 768),
        ("xlmr_large", 559_890_432, 1024**2 + 1024 + 1024),
        ("minilm_l6", 22_713_216, 384**2 + 384 + 2 * 384),
    ],
)
def test_parameter_counts_of_the_presets(size, published, heads_and_types):
    count = sum(np.prod(leaf.shape) for leaf in flatten(model_of(size=size).shapes()).values())
    assert count == published - heads_and_types
    assert count == {"xlmr_base": 277_452_288, "xlmr_large": 558_839_808, "minilm_l6": 22_564_608}[size]


@pytest.mark.parametrize("keys", [ROBERTA, {**BERT, "pad": 1}], ids=["roberta-first", "bert-mean"])
def test_padding_changes_nothing_and_has_no_gradient(keys, random_params, quick):
    model = model_of(**keys)
    params = random_params(model)

    def loss(params, ids):
        features = model.apply(params, ids, method="features")
        return jnp.sum(jnp.square(features[0])), features

    (_, padded), gradient = quick(jax.value_and_grad(loss, has_aux=True))(params, TEXTS)
    (_, alone), expected = quick(jax.value_and_grad(loss, has_aux=True))(params, TEXTS[:1, :5])
    np.testing.assert_allclose(padded[0], alone[0], atol=1e-5)
    for (path, one), other in zip(flatten(gradient).items(), flatten(expected).values(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, err_msg=path)
    assert not np.any(gradient["token_embed"][1])


def test_positions_are_counted_as_each_family_does(random_params):
    roberta, bert = model_of(**ROBERTA), model_of(**BERT)
    ids = np.array([[0, 5, 2, 1], [1, 0, 5, 2]], np.int32)  # the second padded at its begin
    params = random_params(roberta)
    table = np.asarray(params["pos_embed"])
    found = roberta.apply(params, jnp.asarray(ids != 1), method="_positions")
    np.testing.assert_array_equal(found, table[[[2, 3, 4, 1], [1, 2, 3, 4]]])
    np.testing.assert_array_equal(bert.apply(params, jnp.asarray(ids != 1), method="_positions"), table[:4])
    assert (text.longest(config_of(size="xlmr_base")), text.longest(config_of(size="minilm_l6"))) == (512, 512)


def test_a_given_mask_counts_instead_of_the_padding_token(random_params, run):
    model = model_of(**ROBERTA)
    params = random_params(model)
    other = np.where(TEXTS == 1, 33, TEXTS)  # filled up with another token
    found = run(model, params, other, jnp.asarray(TEXTS != 1), method="features")
    np.testing.assert_allclose(found, run(model, params, TEXTS, method="features"), atol=1e-6)
    outside = run(model, params, np.where(TEXTS == 9, 52, TEXTS), method="features")
    assert np.isnan(outside[0]).all() and np.isfinite(outside[1]).all()  # a token that the table has not


def test_half_precision_and_rematerialisation_train(random_params, quick):
    model = model_of(**ROBERTA, dtype="bfloat16", remat="dots", dropout=0.1)
    params, keys = random_params(model), jax.random.split(jax.random.key(0), 2)

    def loss(params):
        tokens = model.apply(params, TEXTS, keys=keys, train=True)
        return jnp.sum(tokens.astype(jnp.float32)), tokens.dtype == jnp.bfloat16

    gradient, half = quick(jax.grad(loss, has_aux=True))(params)
    assert half and all(np.isfinite(leaf).all() and leaf.dtype == jnp.float32 for leaf in flatten(gradient).values())


def test_dropout_acts_in_training_by_keys_alone(random_params, quick):
    model = model_of(**ROBERTA, dropout=0.5)
    params = random_params(model)
    features = quick(lambda keys, train: model.apply(params, TEXTS, keys=keys, train=train), static_argnums=1)
    one, two = (jax.random.split(jax.random.key(seed), 2) for seed in (0, 1))
    np.testing.assert_array_equal(features(one, True), features(one, True))
    assert np.any(features(one, True) != features(two, True))
    np.testing.assert_array_equal(features(one, False), features(None, False))
    assert np.any(features(one, True)[0] != features(one[::-1], True)[0])
    with pytest.raises(ValueError, match="needs a key for each example"):
        model.apply(params, TEXTS, train=True)


def test_wrong_dimensions_are_refused(random_params):
    for keys, message in (
        (dict(heads=3), "config.text.width: 16 must be a multiple of heads = 3"),
        (dict(pad=52), "config.text.pad: 52 is none of 52 tokens"),
        (dict(positions=2), "config.text.positions: 2 leaves no position for a token.* use at least 3"),
    ):
        with pytest.raises(UserError, match=message):
            text.dimensions(config_of(**{**ROBERTA, **keys}))
    with pytest.raises(UserError, match="config.text.positions: texts of 11 tokens, but there are positions for 10"):
        model_of(**ROBERTA).apply(random_params(model_of(**ROBERTA)), np.zeros((1, 11), np.int32))
    assert text.forward_flops(config_of(**ROBERTA), 10) == 2 * (2 * 10 * 16 * (4 * 16 + 2 * 10 + 2 * 24))


class Tower(Stage):
    """Trains a text encoder towards zero; what a stage with a text tower compiles to."""

    Config = dataclasses.make_dataclass("TowerConfig", [], bases=(StageConfig,), frozen=True)
    records = 64

    def __init__(self, frozen: bool):
        self.config = config_lib.resolve(self.Config, {"stage": "tower", "global_batch": 8, "train_for": "2 steps"})
        self.model, self.frozen = model_of(**ROBERTA), frozen

    def init(self, key):
        return {"text": self.model.init(key)}

    def loss(self, params, batch, keys):
        features = self.model.apply(params["text"], batch["ids"], method="features")
        total = jnp.sum(jnp.square(features)), jnp.float32(len(features))
        return total, {"loss": total}

    def parameter_axes(self):
        return text.PARAMETER_AXES

    def lr_rules(self):
        return ((r"text/token_embed", FROZEN if self.frozen else 1.0), (r".*", 1.0))

    def batch_spec(self):
        return {"ids": jax.ShapeDtypeStruct((8, 7), jnp.int32)}


def mesh_of(data, fsdp, tensor):
    config = config_lib.resolve(partition.MeshConfig, dict(data=data, fsdp=fsdp, tensor=tensor))
    return partition.make_mesh(config, jax.devices()[: data * fsdp * tensor])


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_table_has_no_gradient(frozen):
    """Nothing of the table's shape is computed: its gradient, its moments and their update."""
    prog = program.make(Tower(frozen), mesh_of(1, 1, 1))
    computed = re.findall(r"%\S+ = f32\[52,16\]\S* (?!parameter|get-tuple-element|copy)\w", prog.compile().as_text())
    assert bool(computed) != frozen
    moments = [path for path in flatten(prog.optimizer.split(prog.shapes.params)[0]) if "token_embed" in path]
    assert bool(moments) != frozen


def test_a_split_table_gives_the_values_and_gradients_of_a_whole_one(random_params):
    """Rows over `tensor`, columns over `fsdp`: tokens move between devices, the table does not."""
    model = model_of(**ROBERTA)
    params = {"text": random_params(model)}
    ids = np.random.default_rng(0).integers(0, 52, (8, 7)).astype(np.int32)

    def loss(params, ids):
        features = model.apply(params["text"], ids, method="features")
        return jnp.sum(jnp.square(features) * jnp.arange(16)), features

    answer = jax.value_and_grad(loss, has_aux=True)
    alone = jax.jit(answer)(params, ids)
    mesh = mesh_of(2, 2, 2)
    shapes = flatten(params)
    placed = partition.shardings(params, partition.axes_of(text.PARAMETER_AXES, shapes), "fsdp_tensor", mesh)
    assert placed["text"]["token_embed"].shard_shape((52, 16)) == (26, 8)
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, placed)
        batch = jax.device_put(ids, partition.batch_sharding(mesh))
        compiled = jax.jit(answer, out_shardings=((None, None), placed)).lower(spread, batch).compile()
        found = compiled(spread, batch)
    for (path, one), (_, other) in zip(*(jax.tree_util.tree_leaves_with_path(x) for x in (found, alone)), strict=True):
        scale = np.max(np.abs(other))
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * scale, err_msg=jax.tree_util.keystr(path))
    moved = re.findall(r"= (?:\()?f32\[(\d+,\d+)\]\S* (?:all-gather|all-to-all|collective-permute)", compiled.as_text())
    assert not {"52,16", "26,16", "52,8", "26,8"} & set(moved)
