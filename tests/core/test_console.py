"""Lines for people."""

import pytest

from mae_pp_jax.core import console


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (0.4, "0:00"), (59.7, "1:00"), (1079.7, "18:00"), (3599.6, "1:00:00"), (3723, "1:02:03")],
)
def test_a_clock_never_shows_sixty(seconds, text):
    assert console.clock(seconds) == text
