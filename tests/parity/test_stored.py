"""The stored cases are what the generator makes."""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [torch]: run make parity")
pytest.importorskip("transformers", reason="needs the extra [torch]: run make parity")

from safetensors.numpy import load_file

from tests.parity import checks, references


def arrays(path):
    return load_file(path) if path.suffix == ".safetensors" else dict(np.load(path))


@pytest.mark.parametrize("name", references.CASES)
def test_the_generator_makes_the_stored_case_again(name, tmp_path):
    references.define_torchvision_operators()
    references.CASES[name](tmp_path / name)
    stored = references.STORED / name
    made = sorted(path.name for path in (tmp_path / name).iterdir())
    assert made == sorted(path.name for path in stored.iterdir())
    for file in made:
        if file.endswith((".safetensors", ".npz")):
            one, two = arrays(tmp_path / name / file), arrays(stored / file)
            assert one.keys() == two.keys()
            for key in one:  # another processor rounds sums another way
                scale = max(checks.scale_of(key, two), 1e-3)
                np.testing.assert_allclose(one[key], two[key], rtol=0, atol=1e-5 * scale, err_msg=f"{file} {key}")
    case = stored / "case.json"
    assert not case.is_file() or json.loads(case.read_text()) == json.loads((tmp_path / name / "case.json").read_text())
