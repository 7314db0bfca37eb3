"""Contrastive losses and their gradients against open_clip's."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [torch]: run make parity")
pytest.importorskip("transformers", reason="needs the extra [torch]: run make parity")

from tests.parity import contrastive, references


@pytest.fixture(autouse=True, scope="module")
def importable():
    references.define_torchvision_operators()


@pytest.mark.parametrize("name", contrastive.SETTINGS)
@pytest.mark.parametrize("batch, width, block", [(1, 8, 16), (61, 32, 16), (300, 64, 128)])
def test_as_open_clip(name, batch, width, block):
    found = contrastive.differences(name, contrastive.case(name, batch, width, seed=batch), block)
    assert max(found.values()) <= 1e-6, found


def test_the_generator_makes_the_stored_case_again():
    stored, made = np.load(contrastive.STORED), contrastive.case("softmax") | contrastive.case("sigmoid")
    assert set(stored.files) == set(made)
    for key in made:
        np.testing.assert_allclose(made[key], stored[key], rtol=1e-12, atol=1e-14, err_msg=key)
