"""Our models against stored answers of timm, transformers and torchvision.

The cases and their generator stand in tests/parity; `make parity` makes them again and compares.
"""

import pathlib

import pytest

from tests.parity import checks

STORED = pathlib.Path(__file__).parents[1] / "parity" / "stored"
CASES = sorted(path.name for path in STORED.iterdir() if path.name not in ("positions", "adapters"))


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_of_the_reference(case, tmp_path):
    found = checks.check(STORED / case, tmp_path / "run")
    assert found and max(found.values()) <= checks.LIMIT, found


def test_adapters_are_those_of_the_papers(tmp_path):
    """Tokens and gradients of VPT, AdaptFormer and LoRA on timm's ViT, from definitions in PyTorch in float64."""
    found = checks.check_adapters(STORED / "adapters", tmp_path / "run")
    assert len(found) == 4 + 1 + 1 + 4 + 12
    assert max(value for name, value in found.items() if name.endswith("tokens")) <= 1e-5, found
    assert max(found.values()) <= 1e-4, found


def test_positions_are_resized_as_each_source_does():
    found = checks.check_positions(STORED / "positions")
    assert len(found) == 12 and max(found.values()) <= 1e-5, found


def test_the_cases_stay_small():
    assert sum(path.stat().st_size for path in STORED.rglob("*") if path.is_file()) < 2e6
