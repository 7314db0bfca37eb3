"""A whole pipeline through its command: order, workers, skipping, report; and the demo's configs."""

import json

import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import pipeline as pipeline_lib
from mae_pp_jax.core import config as config_lib
from mae_pp_jax.core.errors import UserError
from tests.conftest import ROOT, TINY, TINY_MAE, command

PIPELINE = f"""
import ml_collections

TINY = {TINY!r}
TINY_MAE = {TINY_MAE!r}


def values(texts):
    kinds = dict(true=True, false=False)
    return {{k: kinds.get(v, int(v) if v.isdigit() else v) for k, v in texts.items()}}


def get_config():
    c = ml_collections.ConfigDict()
    c.title, c.data = "tiny", "digits_hashtags"
    root = {str(ROOT / "configs")!r}
    c.stages = [
        dict(name="mae", config=root + "/mae/digits.py", overrides=values(TINY_MAE)),
        dict(name="wsp", config=root + "/wsp/digits.py", overrides=values(TINY)),
        dict(name="mae_wsp", config=root + "/wsp/digits.py", overrides=values(TINY), init_from="mae"),
        dict(name="linear", config=root + "/linear/digits.py", overrides=values(TINY), init_from="mae_wsp",
             report=dict(init="MAE→WSP", task="linear")),
        dict(name="suite_mae", suite="image", of="mae", report=dict(init="MAE"),
             overrides=dict(evals=("knn", "low_shot"),
                            low_shot=dict(shots=(1, 2), splits=2, logistic_l2=(1.0,)))),
    ]
    return c
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.py"
    path.write_text(PIPELINE)
    return path


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "run"
    done = command("pipeline", f"--config={recipe}", f"--workdir={folder}", "--workers=2")
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.mark.e2e
def test_stages_run_in_order_and_the_report_is_written(finished):
    folder, done = finished
    results = {
        name: json.loads((folder / name / "result.json").read_text()) for name in ("mae", "wsp", "mae_wsp", "linear")
    }
    assert [parent["stage"] for parent in results["linear"]["lineage"]] == ["mae", "wsp"]
    assert results["mae_wsp"]["params_sha256"] != results["wsp"]["params_sha256"]
    rows = json.loads((folder / "report.json").read_text())
    judged = [row for row in rows if row["init"] == "MAE"]
    assert rows[len(judged) :] == [
        dict(
            init="MAE→WSP",
            task="linear",
            metric="test/accuracy",
            mean=results["linear"]["metrics"]["test/accuracy"],
            std=None,
            seeds=1,
            splits=None,
        )
    ]
    assert [row["task"] for row in judged] == [
        "20-NN",
        *(f"{k}-shot ({n})" for k in (1, 2) for n in ("logistic", "ridge")),
    ]
    suite = json.loads((folder / "suite_mae" / "result.json").read_text())
    assert [row["mean"] for row in judged] == pytest.approx([suite["metrics"][row["task"]] for row in judged])
    assert [(row["std"] is None, row["splits"]) for row in judged] == [(True, None), *[(False, 2)] * 4]
    assert suite["lineage"][-1]["stage"] == "mae" and (folder / "suite_mae" / "log.txt").is_file()
    page = (folder / "report.html").read_text()
    assert "MAE→WSP" in page and "data:image/png;base64" in page
    assert "/5] linear: test/accuracy" in done.stderr and "/5] suite_mae: 10-NN" in done.stderr


@pytest.mark.e2e
def test_finished_stages_are_skipped_and_one_process_gives_the_same_weights(finished, recipe, tmp_path):
    folder, _ = finished
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*/result.json")}
    again = command("pipeline", f"--config={recipe}", f"--workdir={folder}", "--workers=1")
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*/result.json")} == before
    alone = command("pipeline", f"--config={recipe}", f"--workdir={tmp_path / 'alone'}", "--workers=1")
    assert alone.returncode == 0, alone.stderr
    for name in ("mae", "linear"):
        a, b = (json.loads((f / name / "result.json").read_text()) for f in (folder, tmp_path / "alone"))
        assert a["params_sha256"] == b["params_sha256"] and a["metrics"] == b["metrics"]


@pytest.mark.e2e
def test_a_failing_stage_ends_the_pipeline_with_its_error(recipe, tmp_path):
    args = ("pipeline", f"--config={recipe}", f"--workdir={tmp_path / 'run'}", "--workers=2")
    failed = command(*args, "--config.mae_wsp.init_from.step=5")
    assert failed.returncode == 2
    assert f"error: config.init_from: {tmp_path / 'run' / 'mae'} has no checkpoint 5; it has 8, 12" in failed.stderr


@pytest.mark.parametrize("arguments", ["", ":data=cifar10", ":data=/photos,image_size=64,patch=8", ":linear_seeds=5"])
def test_every_stage_of_the_demo_resolves(arguments, tmp_path):
    path = ROOT / "configs/pipelines/demo.py"
    plan = config_lib.load_file(f"{path}{arguments}")
    stages = pipeline_lib._resolve(plan, tmp_path, path.parent, {"mae.train_for": "1 steps"})
    cells = {(e["report"]["init"], e["report"]["task"]) for e, _ in stages.values() if e.get("report")}
    assert cells == {(i, t) for i in ("random", "MAE", "WSP", "MAE→WSP") for t in ("finetune", "linear", "5-shot")}
    assert stages["mae"][1].train_for == "1 steps"
    assert stages["mae_wsp"][1].init_from.run == str(tmp_path / "mae")
    if "photos" in arguments:
        assert {config.data.name for _, config in stages.values()} == {"/photos"}
        assert {config.data.image_size for _, config in stages.values()} == {64}
        assert stages["5shot_mae"][1].small_classes == "all"  # a folder may have classes of four images


@pytest.mark.parametrize(
    "entry, message",
    [
        (dict(name="b", config="c", init_from="a"), "b starts from 'a', which is not a stage before it"),
        (dict(name="b", confg="c"), "unknown key 'confg'"),
        (dict(name="b", suite="image", of="a"), "b judges 'a', which is not a stage before it"),
        (dict(name="b", suite="image", init_from="a"), "unknown key 'init_from'; known: name, of, overrides"),
    ],
)
def test_wrong_pipelines_are_refused(entry, message, tmp_path):
    recipes = dict(stages=[{**entry, **({"config": "configs/mae/digits.py"} if "config" in entry else {})}])
    with pytest.raises(UserError, match=message):
        pipeline_lib._resolve(recipes, tmp_path, ROOT, {})


def test_an_override_of_no_stage_is_refused(recipe, tmp_path, capsys):
    code = main(["pipeline", f"--config={recipe}", f"--workdir={tmp_path / 'x'}", "--config.mea.seed=1"])
    assert code == 2 and "no stage 'mea'" in capsys.readouterr().err and not (tmp_path / "x").exists()
