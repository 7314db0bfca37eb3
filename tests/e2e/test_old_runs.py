"""Runs that an earlier version of the code made: they are evaluated, embedded, converted, built upon and resumed.

`data/runs_0.1.0.tar.xz` holds runs of version 0.1.0 at revision fb58c97a0ec4, on the embedded digits with the sizes of
`conftest.TINY`, 8 wide: `mae`, `classify` with an average, and `wsp_stopped`, which was preempted at step 7 of 12 and whose
whole run ended with `expected/wsp_result.json`. The other files in `expected/` that version's `embed` and `convert` made.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands.embed import embed
from mae_pp_jax.commands.train import train
from tests.conftest import ROOT, TINY
from tests.stages.conftest import params_of

SIZES = {**TINY, "model.width": "8", "checkpoint.keep": "1"}


@pytest.fixture
def old(tmp_path, monkeypatch) -> pathlib.Path:
    """The old runs in a folder of their own, which is also the working directory, as it was when they were made."""
    with tarfile.open(pathlib.Path(__file__).parent / "data" / "runs_0.1.0.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["mae", "classify"])
def test_they_are_evaluated_with_the_metrics_they_ended_with(old, name, capsys):
    assert main(["evaluate", f"--workdir={name}"]) == 0
    found = json.loads(capsys.readouterr().out)
    then = json.loads((old / name / "result.json").read_text())["metrics"]
    assert {m for m in found if m != "step"} == {m for m in then if m.startswith("test/")}
    for metric in found.keys() - {"step"}:
        assert found[metric] == pytest.approx(then[metric], rel=1e-5), metric


@pytest.mark.parametrize("name", ["mae", "classify"])
def test_they_are_embedded_as_before(old, name):
    features, _ = embed(name, "expected/pictures/*.png", "features.npz")
    with np.load(old / "expected" / f"{name}_features.npz") as then:
        np.testing.assert_allclose(features, then["features"], rtol=1e-4, atol=1e-5)


def test_they_predict(old, capsys):
    assert main(["predict", "--workdir=classify", "--images=expected/pictures", "--top=10"]) == 0
    said = capsys.readouterr()
    head, *rows = [line.split(",") for line in said.out.splitlines()]
    assert head == ["file", "class", "probability"] and len(rows) == 10 * len(
        list((old / "expected/pictures").iterdir())
    )
    assert {name for _, name, _ in rows} == set("0123456789")
    assert "does not name its 10 classes" in said.err


def test_they_are_converted_to_the_same_bytes(old):
    assert main(["convert", "--from=mae", "--to=mae.safetensors", "--to-format=timm"]) == 0
    assert (old / "mae.safetensors").read_bytes() == (old / "expected" / "mae.safetensors").read_bytes()


def test_a_run_starts_from_one(old):
    overrides = {**SIZES, "init_from.run": "mae", "train_for": "1 steps", "optim.lr": "0", "optim.weight_decay": "0"}
    result = train(str(ROOT / "configs/wsp/digits.py"), "wsp", overrides)
    source, target = params_of(old / "mae"), params_of(old / "wsp")
    for path in (p for p in source if p.startswith("encoder/")):
        np.testing.assert_array_equal(source[path], target[path], err_msg=path)
    (parent,) = result["lineage"]
    assert parent["params_sha256"] == json.loads((old / "mae" / "result.json").read_text())["params_sha256"]


def test_a_stopped_one_is_resumed_and_ends_as_it_would_have(old):
    before = (old / "wsp_stopped" / "metrics.jsonl").read_text()
    assert "images_seen" in before
    result = train(str(ROOT / "configs/wsp/digits.py"), "wsp_stopped", {**SIZES, "init_from.run": "mae"})
    whole = json.loads((old / "expected" / "wsp_result.json").read_text())["metrics"]
    for metric in ("train/loss", "test/loss", "test/tag_precision"):
        assert result["metrics"][metric] == pytest.approx(whole[metric], rel=1e-4), metric
    rows = (old / "wsp_stopped" / "metrics.jsonl").read_text()
    assert rows.startswith(before) and all('"examples_seen"' in row for row in rows[len(before) :].splitlines())
    assert [entry["step"] for entry in result["revisions"]] == [0, 7]
    assert result["revisions"][0]["revision"] == "0.1.0+fb58c97a0ec4"
