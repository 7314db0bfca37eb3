"""The state of a run and the keys of its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import metrics, state

PARAMS = {"a": {"kernel": jnp.arange(4.0)}, "b": {"kernel": jnp.ones(3)}}


def first(seed=0, averaged=None):
    return state.create(
        PARAMS, (), seed=seed, averaged=averaged, metrics=metrics.zeros(["loss"]), counts=["data/unreadable"]
    )


def test_the_first_state_has_done_nothing():
    made = first()
    assert int(made.step) == 0 and int(made.bad_step) == -1 and made.ema is None
    assert {name: int(count) for name, count in made.counts.items()} == {"data/unreadable": 0}
    assert all(float(value) == 0 for pair in made.metrics.values() for value in pair)


def test_averages_start_as_a_copy():
    made = first(averaged={"a": PARAMS["a"]})
    assert set(made.ema) == {"a"}
    np.testing.assert_array_equal(made.ema["a"]["kernel"], PARAMS["a"]["kernel"])
    assert made.ema["a"]["kernel"] is not PARAMS["a"]["kernel"]  # the step gives its own buffers away


@pytest.mark.parametrize("seed", [0, 7])
def test_the_key_of_a_step_follows_from_seed_and_step(seed):
    made = first(seed)
    later = jax.tree.map(lambda x: x, made)
    object.__setattr__(later, "step", jnp.asarray(3, jnp.int32))
    wanted = jax.random.fold_in(jax.random.key(seed), 3)
    np.testing.assert_array_equal(jax.random.key_data(state.step_key(later)), jax.random.key_data(wanted))
    assert not np.array_equal(jax.random.key_data(state.step_key(made)), jax.random.key_data(wanted))


def test_seeds_share_one_program():
    traces = []

    @jax.jit
    def draw(state_):
        traces.append(1)
        return jax.random.uniform(state.step_key(state_))

    assert float(draw(first(1))) != float(draw(first(2))) and len(traces) == 1
