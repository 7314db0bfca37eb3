"""The notebooks run from their first cells to their last, in reduced length."""

import csv
import json
import os
import re

import nbclient
import nbformat
import pytest

from tests.commands.conftest import encoder_file
from tests.conftest import ROOT, environment

NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Runs a notebook with these environment variables and returns the outputs of its cells."""

    def run(name: str, variables: dict[str, str]) -> list:
        for key, value in {**environment(), **variables}.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
        nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
        return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]

    return run


def shown(outputs, kind: str) -> list[str]:
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.e2e
def test_quickstart_runs(outputs, tmp_path):
    found = outputs("01_quickstart.ipynb", {"QUICKSTART_SCALE": "0.02", "QUICKSTART_RUNS": str(tmp_path / "runs")})
    assert shown(found, "image/png")
    table = shown(found, "text/markdown")[-1]
    assert all(f"| {start} |" in table for start in ("random", "MAE", "WSP", "MAE→WSP"))
    assert {p.name for p in (tmp_path / "runs").iterdir()} >= {"mae", "wsp", "mae_wsp", "linear_mae_wsp"}


@pytest.mark.e2e
def test_transfer_runs(outputs, tmp_path):
    """From the weights of a tiny encoder in timm's layout, on digits that the notebook writes as a folder."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    runs = tmp_path / "runs"
    variables = dict(CHECKPOINT=str(encoder_file(tmp_path / "hub")), SCALE="0.02", RUNS=str(runs), PHOTOS="")
    variables = {f"TRANSFER_{name}": value for name, value in variables.items()}
    found = outputs("03_transfer.ipynb", {**variables, "MAE_PP_JAX_CACHE": str(tmp_path / "cache")})
    assert shown(found, "image/png")
    accuracies, answers = shown(found, "text/markdown")
    told = dict(re.findall(r"^\| (\w+)[^|]*\| ([\d.]+) % \|$", accuracies, re.MULTILINE))
    tuned = json.loads((runs / "finetune" / "result.json").read_text())
    few = json.loads((runs / "lora_5shot" / "result.json").read_text())
    assert told["finetuning"] == f"{100 * tuned['metrics']['test/accuracy']:.1f}"
    assert told["LoRA"] == f"{100 * few['metrics']['test/accuracy']:.1f}" and few["metrics"]["test/splits"] == 5
    assert float(told["linear"]) > 30  # even features of random weights tell some digits apart
    wrong = round(360 * (1 - tuned["metrics"]["test/accuracy"]))
    assert f"{wrong} of 360 images" in (runs / "mistakes.html").read_text()
    assert f"{wrong} of 360 images" in "".join(shown(found, "text/html"))
    with (runs / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and {row["class"] for row in rows} <= set("0123456789")
    assert all(f"| {row['file']} | {row['class']} |" in answers for row in rows)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_define_no_training_code(name):
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "mae_pp_jax" in code
    for word in ("import jax", "import optax", "import flax", "value_and_grad"):
        assert word not in code
    assert not re.search(r"^\s*class ", code, re.MULTILINE)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_of_code_is_explained(name):
    cells = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells
    for before, cell in zip(cells, cells[1:]):
        assert cell.cell_type == "markdown" or before.cell_type == "markdown", cell.source
