"""The quickstart notebook runs from its first cell to its last, in reduced length."""

import os
import pathlib

import nbclient
import nbformat
import pytest

from tests.conftest import ROOT, environment


@pytest.mark.e2e
def test_quickstart_runs(tmp_path, monkeypatch):
    for name, value in {**environment(), "QUICKSTART_SCALE": "0.02", "QUICKSTART_RUNS": str(tmp_path / "runs")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "notebooks/01_quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    tables = [output["data"]["text/markdown"] for output in outputs if "text/markdown" in output.get("data", {})]
    assert all(f"| {start} |" in tables[-1] for start in ("random", "MAE", "WSP", "MAE→WSP"))
    assert {p.name for p in pathlib.Path(tmp_path / "runs").iterdir()} >= {"mae", "wsp", "mae_wsp", "linear_mae_wsp"}


def test_the_notebook_defines_no_training_code():
    notebook = nbformat.read(ROOT / "notebooks/01_quickstart.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "mae_pp_jax" in code
    for word in ("import jax", "import optax", "import flax", "class ", "value_and_grad"):
        assert word not in code
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
