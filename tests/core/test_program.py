"""The train step: what a stage is asked, when, and what becomes of its answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core import loop, optim, partition
from mae_pp_jax.core import program as program_lib
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.functional import flatten
from tests.text_stage import TextConfig, TextStage

SGD = dict(name="sgd", lr=0.1, lr_batch=0, warmup="0 steps")
KEYS = dict(stage="text", global_batch=16, train_for="10 steps", optim=SGD)


def program(cls=TextStage, mesh=(1, 1, 1), **changes):
    stage = cls(config_lib.resolve(TextConfig, config_lib.merge(KEYS, changes)))
    sizes = config_lib.resolve(partition.MeshConfig, dict(zip(partition.MESH_AXES, mesh, strict=True)))
    return program_lib.make(stage, partition.make_mesh(sizes, jax.devices()[: int(np.prod(mesh))]))


def updated(prog, steps=2):
    """The state after a few updates."""
    state, *_ = loop.initial_state(prog)
    update, batches = prog.compile(), prog.stage.train_batches(0)
    for _ in range(steps):
        state = update(state, partition.to_global(next(batches), prog.mesh))
    return jax.device_get(state)


def same(a, b, rtol=1e-5):
    for (path, value), other in zip(flatten(a).items(), flatten(b).values(), strict=True):
        np.testing.assert_allclose(value, other, rtol=rtol, atol=1e-6, err_msg=path)


class Paired(TextStage):
    """Each text begins as another one of the batch does, which only the whole batch can give; some are left out."""

    def augment(self, batch, keys):
        texts = batch["bytes"]
        halves = jnp.concatenate([texts[::-1, :4], texts[:, 4:]], axis=1)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.7))(keys)
        return {"bytes": halves, "kept": kept.astype(jnp.float32)}

    def loss(self, params, batch, keys):
        (_, _), values = super().loss(params, batch, keys)
        bits = self.bits(params, batch["bytes"])
        return (jnp.sum(bits * batch["kept"]), jnp.sum(batch["kept"])), values


@pytest.mark.parametrize("cls", [TextStage, Paired])
def test_slices_give_the_update_of_the_whole_batch(cls):
    whole = updated(program(cls))
    sliced = updated(program(cls, (2, 2, 1), microbatches=4))
    same(whole.params, sliced.params)
    np.testing.assert_allclose(sliced.metrics["gradient_norm"], whole.metrics["gradient_norm"], rtol=1e-5)
    np.testing.assert_allclose(sliced.metrics["bits"], whole.metrics["bits"], rtol=1e-5)


def test_the_whole_batch_is_augmented_once():
    sizes = []

    class Counted(TextStage):
        def augment(self, batch, keys):
            sizes.append((batch["bytes"].shape, keys.shape))
            return batch

    prog = program(Counted, microbatches=4)
    sizes.clear()
    prog.lower()
    assert sizes == [((16, 9), (16,))]


def test_a_loss_that_cannot_be_cut_is_not():
    class Contrastive(TextStage):
        divisible = False

    assert program(Contrastive, microbatches=1).lengths.total == 10
    with pytest.raises(UserError, match="config.microbatches: 4, but the loss of stage 'text' .* cannot be cut; use 1"):
        program(Contrastive, microbatches=4)


class Frozen(TextStage):
    def lr_rules(self):
        return ((r"table", optim.FROZEN), (r".*", 1.0))


def test_averages_are_kept_of_what_trains_and_evaluated_with_the_rest():
    prog = program(Frozen, optim=dict(ema=0.75))
    first, state = jax.device_get(loop.initial_state(prog)[0]), updated(prog, steps=1)
    assert set(flatten(state.ema)) == {"mixing/kernel", "mixing/bias", "readout/kernel"}
    trained = prog.optimizer.split(state.params)[0]
    same(state.ema, jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, first.ema, trained))
    evaluated = prog.averaged(state)
    np.testing.assert_array_equal(evaluated["table"], first.params["table"])
    np.testing.assert_array_equal(evaluated["readout"]["kernel"], state.ema["readout"]["kernel"])
    assert np.any(evaluated["readout"]["kernel"] != state.params["readout"]["kernel"])
    plain = program()
    state = updated(plain, steps=1)
    assert plain.averaged(state) is state.params


def test_frozen_parameters_have_no_optimizer_state():
    kept = [leaf.size for leaf in jax.tree.leaves(program(Frozen).shapes.opt_state) if leaf.ndim]
    assert sum(kept) == 2 * 16 * 16 + 2 * 16 + 16 * 256  # momentum of all but the table


def test_the_step_of_the_first_number_that_is_not_finite_is_kept():
    class Broken(TextStage):
        def rows(self, starts):
            return super().rows(starts) | {"factor": np.ones(len(starts), np.float32)}

        def batch_spec(self):
            return {**super().batch_spec(), "factor": jax.ShapeDtypeStruct((self.config.global_batch,), jnp.float32)}

        def loss(self, params, batch, keys):
            (total, weight), values = super().loss(params, batch, keys)
            return (total * jnp.mean(batch["factor"]), weight), values

        def train_batches(self, start_step):
            for step, batch in enumerate(super().train_batches(start_step), start_step):
                yield batch | {"factor": np.full_like(batch["factor"], np.inf if step in (2, 4) else 1.0)}

    assert int(updated(program(Broken), steps=2).bad_step) == -1
    assert int(updated(program(Broken), steps=6).bad_step) == 2


def test_counts_add_up_over_the_whole_batch_and_all_steps():
    class Counting(TextStage):
        def counts(self, batch):
            return {"data/spaces": jnp.sum(batch["bytes"] == ord(" "), dtype=jnp.int32)}

    prog = program(Counting, (2, 2, 1), microbatches=2)
    batches = prog.stage.train_batches(0)
    wanted = sum(int(np.sum(next(batches)["bytes"] == ord(" "))) for _ in range(3))
    assert int(updated(prog, steps=3).counts["data/spaces"]) == wanted > 0


class Independent(TextStage):
    """Two models side by side that share nothing, each on the whole batch."""

    def init(self, key):
        return {"models": jax.vmap(super().init)(jnp.stack([key, jax.random.fold_in(key, 1)]))}

    def parameter_axes(self):
        return tuple((f"models/{pattern}", ("splits", *axes)) for pattern, axes in super().parameter_axes())

    def loss(self, params, batch, keys):
        bits = jax.vmap(self.bits, (0, None))(params["models"], batch["bytes"])
        total = (jnp.sum(bits), jnp.asarray(1.0 * bits.shape[1]))
        return total, {"bits": total}


def test_the_gradient_norm_is_the_mean_over_independent_models():
    class Alone(TextStage):
        def loss(self, params, batch, keys):
            bits = self.bits(params, batch["bytes"])
            total = (jnp.sum(bits), jnp.sum(jnp.ones_like(bits)))
            return total, {"bits": total}

    prog, alone = program(Independent), program(Alone)
    start, norms = loop.initial_state(prog)[0], []
    batch = partition.to_global(next(prog.stage.train_batches(0)), prog.mesh)
    step = jax.jit(alone.step)
    for index in range(2):
        params = jax.tree.map(lambda leaf, i=index: leaf[i], start.params["models"])
        norms.append(float(step(alone.first_state(params), batch).metrics["gradient_norm"][0]))
    found = jax.jit(prog.step)(start, batch).metrics["gradient_norm"]
    assert norms[0] != norms[1]
    np.testing.assert_allclose(float(found[0] / found[1]), np.mean(norms), rtol=1e-5)


def test_lengths_are_in_steps():
    prog = program(train_for="2 epochs", log_every="10%", eval_every="1 epochs", checkpoint=dict(every="7 steps"))
    assert prog.stage.records == 1792  # 112 steps of 16
    lengths = prog.lengths
    assert (lengths.total, lengths.log, lengths.evaluate, lengths.save) == (224, 22, 112, 7)
