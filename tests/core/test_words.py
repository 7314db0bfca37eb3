"""The core trains anything: it speaks of examples, not of what they are."""

import pathlib
import re

import pytest

from mae_pp_jax import core

# What examples and models of one kind are made of.
OF_A_STAGE = re.compile(
    r"(?<![a-z])(images?|cv2|pictures?|pixels?|patch(es)?|mask(s|ed|ing)?|heads?|class[ _]tokens?)(?![a-z])", re.I
)


@pytest.mark.parametrize("path", sorted(pathlib.Path(core.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_core_knows_nothing_of_what_it_trains_on(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [f"{number}: {line}" for number, line in enumerate(lines, 1) if OF_A_STAGE.search(line)]
