"""Stage `mae`."""

import jax
import numpy as np

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import optim, partition
from mae_pp_jax.core.functional import flatten
from mae_pp_jax.models.positions import sincos_2d
from tests.stages.conftest import params_of, stage_of


def mesh():
    return partition.make_mesh(config_lib.resolve(partition.MeshConfig, {}), jax.devices()[:1])


def test_both_position_tables_are_fixed(runs):
    params = params_of(runs("mae")[0])
    for table in ("encoder/pos_embed", "decoder/pos_embed"):
        np.testing.assert_array_equal(params[table], sincos_2d(16, 2, 2, True))
    stage = stage_of("mae", model__positions="learned")
    paths = list(flatten(jax.eval_shape(stage.init, jax.random.key(0))))
    frozen = [path for path, value in optim.assign(stage.lr_rules(), paths, "").items() if value == optim.FROZEN]
    assert frozen == ["decoder/pos_embed"]  # the encoder's is then trained


def test_the_loss_is_the_same_for_the_same_keys_and_another_for_others():
    stage = stage_of("mae")
    params, batch = stage.init(jax.random.key(0)), next(stage.train_batches(0))
    loss = jax.jit(lambda keys: stage.loss(params, batch, keys)[0])
    keys = jax.random.split(jax.random.key(1), 32)
    total, weight = loss(keys)
    assert weight == 32 and total == loss(keys)[0] != loss(keys[::-1])[0]


def test_evaluation_masks_alike_whatever_the_batch_size():
    """By record, so that curves of all runs compare."""
    params, found = stage_of("mae").init(jax.random.key(0)), []
    for size in ("32", "40"):
        measure, _ = stage_of("mae", global_batch=size).evaluators()
        found.append(measure.run(params, mesh()))
    assert found[0].keys() == {"test/loss"}
    np.testing.assert_allclose(found[0]["test/loss"], found[1]["test/loss"], rtol=1e-5)


def test_reconstructions_are_drawn_only_if_wanted():
    assert [evaluator.name for evaluator in stage_of("mae", pictures="0").evaluators()] == ["test"]
    measure, drawing = stage_of("mae", pictures="3").evaluators()
    params = stage_of("mae").init(jax.random.key(0))
    (picture,) = drawing.run(params, mesh()).values()
    assert picture.pixels.shape[1] == 3 * (64 + 4) + 4


def test_no_labels_are_read():
    assert set(stage_of("mae").batch_spec()) == {"image", "unreadable"}
