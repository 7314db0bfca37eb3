"""Lengths of training as people write them, and learning rate schedules over them."""

import numpy as np
import pytest

from mae_pp_jax.core import schedule
from mae_pp_jax.core.errors import UserError


def steps(text, *, records=1000, global_batch=10, **kwargs):
    return schedule.steps(text, field="config.train_for", records=records, global_batch=global_batch, **kwargs)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("3 epochs", 300),
        ("1 epoch", 100),
        ("0.5 epochs", 50),
        (".5 epochs", 50),
        ("5e-1 Epochs", 50),
        ("250 steps", 250),
        ("250steps", 250),
        ("1_000 steps", 1000),
        ("1e3 examples", 100),
        ("1e3 images", 100),
        ("1 image", 1),
        ("5%", 50),
    ],
)
def test_lengths(text, wanted):
    assert steps(text, total=1000, example="image") == wanted


@pytest.mark.parametrize(
    "text",
    "1.2.3 epochs|1_0_ steps|_1 steps|1__0 steps|nan epochs|inf steps|1e epochs|. steps|-1 steps|three epochs|10|"
    "epochs|1 clip|5%|".split("|"),
)
def test_what_is_no_length_is_one_line(text):
    with pytest.raises(UserError, match=r"config.train_for: cannot read '.*' as a length; write it like") as error:
        steps(text, example="image")
    assert "'1e6 images'" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["0 steps", "0 epochs", "0.0 epochs", "0 examples"])
def test_a_training_of_no_step_is_refused(text):
    with pytest.raises(UserError) as error:
        steps(text, records=100, global_batch=256)
    assert str(error.value) == (
        f"config.train_for: {text!r} comes to 0 steps of 256 examples over 100 records; use at least '1 steps'"
    )


@pytest.mark.parametrize("text", ["1e400 epochs", "1e12 steps"])
def test_a_training_of_too_many_steps_is_refused(text):
    with pytest.raises(UserError, match="config.train_for: .* more than 2147483647 steps"):
        steps(text)


def test_an_interval_is_at_least_a_step_where_it_comes_to_less():
    assert steps("1%", total=20) == 1
    assert steps("1 examples", total=20) == 1


@pytest.mark.parametrize("text", ["0 steps", "0%", "0 epochs"])
def test_an_interval_of_no_step_is_refused_where_it_is_asked_for(text):
    with pytest.raises(UserError, match=f"config.train_for: '{text}' comes to 0 steps"):
        steps(text, total=20)


def test_a_warmup_may_be_left_out():
    assert steps("0 steps", total=20, least=0) == 0
    assert steps("1%", total=20, least=0) == 0


def test_schedule_starts_at_zero_peaks_after_warmup_and_ends_at_the_minimum():
    rate = schedule.learning_rate(2.0, warmup=10, total=110, minimum=0.5)
    assert float(rate(0)) == 0.0
    np.testing.assert_allclose([rate(5), rate(10), rate(60), rate(110)], [1.0, 2.0, 1.25, 0.5], rtol=1e-6)


@pytest.mark.parametrize("text", ["1 examples", "0.01 epochs", "1e-9 epochs"])
def test_a_training_of_less_than_a_step_does_one_and_says_so(text, caplog):
    with caplog.at_level("INFO", logger="mae_pp_jax"):
        assert steps(text, records=100, global_batch=256) == 1
    assert f"config.train_for: '{text}' is less than a step" in caplog.text
