"""The suite `image` on a tiny run: what it measures, what it writes, and that nothing is measured twice."""

import contextlib
import io
import json
import re

import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands.train import train
from mae_pp_jax.core import checkpoint, partition, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.core.partition import MeshConfig
from mae_pp_jax.data import few_shot, source
from mae_pp_jax.evaluation.probes import knn
from mae_pp_jax.reporting import suite_table
from mae_pp_jax.stages.shared import feature_sets, saved_encoder
from mae_pp_jax.suites import image, published
from tests.stages.conftest import stage_of
from tests.stages.test_encoder import RECIPE

SMALL = {
    "linear.learning_rates": "1,0.1",
    "linear.weight_decays": "0",
    "linear.epochs": "2",
    "linear.warmup": "0",
    "linear.batch": "256",
    "linear.seeds": "2",
    "knn.neighbours": "10,20",
    "low_shot.shots": "1,2",
    "low_shot.splits": "3",
    "low_shot.logistic_l2": "10,1",
    "low_shot.ridge_l2": "1024,100",
    "low_shot.chosen_by": "200",
}
ARGUMENTS = [f"--config.{name}={value}" for name, value in SMALL.items()]
TASKS = ["linear", "10-NN", "20-NN", "1-shot (logistic)", "1-shot (ridge)", "2-shot (logistic)", "2-shot (ridge)"]


@pytest.fixture(scope="module")
def judged(mae_run):
    """(folder of the run, content of image.json, what was printed)."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["evaluate", "--suite=image", f"--workdir={mae_run}", *ARGUMENTS]) == 0
    return mae_run, json.loads((mae_run / "suites" / "image.json").read_text()), said.getvalue()


def columns(content):
    return {column["task"]: column for column in content["results"][0]["columns"]}


def test_one_table_is_written_and_printed(judged):
    folder, content, said = judged
    found = columns(content)
    assert list(found) == content["table"]["columns"] == TASKS
    assert said == (folder / "suites" / "image.md").read_text() and "| mae |" in said
    assert "360 images of digits_hashtags (test; fitted on 1,437)" in said
    assert (folder / "suites" / "image.png").read_bytes().startswith(b"\x89PNG")
    assert [len(found[task]["values"]["accuracy"]) for task in TASKS] == [2, 1, 1, 3, 3, 3, 3]
    assert found["linear"]["chosen"]["held_out_accuracy"] > 0.3 and found["linear"]["chosen"]["learning_rate"] in (
        1,
        0.1,
    )
    assert set(found["2-shot (ridge)"]["chosen"]["l2"]) <= {1024, 100}
    values = found["2-shot (ridge)"]["values"]["accuracy"]
    cell = content["table"]["rows"][0]["cells"]["2-shot (ridge)"]
    assert cell == pytest.approx(dict(mean=np.mean(values), std=np.std(values, ddof=1), count=3, over="splits"))


def test_neighbours_are_of_the_features_of_the_model(judged):
    folder, content, _ = judged
    mesh = partition.make_mesh(MeshConfig(rules="replicate"))
    found = {}
    for split in ("train", "test"):
        data = source.open_source(source.DataConfig(image_size=8, cache="ram"), split)
        pixels = np.stack([data[i]["image"] for i in range(len(data))])
        labels = np.array([data[i]["label"] for i in range(len(data))])
        found[split] = np.asarray(saved_encoder.load(storage.path(folder), mesh).features(pixels)), labels
    wanted = knn.measure(*found["train"], *found["test"], classes=10, ks=(10,))[10]
    assert columns(content)["10-NN"]["values"]["accuracy"] == [pytest.approx(wanted["accuracy"], abs=0.003)]


def test_what_is_done_is_not_measured_again(judged, monkeypatch, tmp_path):
    """Of a second checkpoint table, only the task whose settings differ is measured."""
    folder, content, _ = judged
    monkeypatch.setattr(feature_sets, "_computed", lambda *_: pytest.fail("features computed again"))
    for name in ("_linear", "_knn"):
        monkeypatch.setattr(image, name, lambda *_: pytest.fail("measured again"))
    out = tmp_path / "table"
    arguments = ["evaluate", "--suite=image", f"--workdir={folder}", f"--out={out}", *ARGUMENTS]
    assert main([*arguments, "--config.low_shot.shots=1,3"]) == 0
    again = columns(json.loads((out / "image.json").read_text()))
    assert again["1-shot (ridge)"] == columns(content)["1-shot (ridge)"] and "3-shot (ridge)" in again


def test_draws_are_those_of_the_stage_and_more_of_them_change_none(judged, mae_run):
    stage = stage_of("low_shot", shots="2", splits="3", global_batch="48", seed="5", data__cache="none")
    run = storage.path(mae_run)
    config = image.config_for(run, {}, {**SMALL, "seed": "5", "low_shot.splits": "4"})
    own = image._judged(run, checkpoint.find(run), checkpoint.meta(run, checkpoint.find(run)), config, run)
    splits = list(image._splits(own, config.low_shot, 2, 5))
    assert len(splits) == 4
    for subset, (rows, others) in zip(stage.subsets, splits, strict=False):
        assert subset.fingerprint == source.Subset(stage.train_source, own.train.records[rows]).fingerprint
        assert len(others) == 200 and not set(rows) & set(others)


def test_splits_are_read_from_files(judged, mae_run, tmp_path):
    run = storage.path(mae_run)
    data = source.open_source(source.DataConfig(image_size=8), "train")
    drawn = source.few_shot_indices(np.array(list(data.column("label"))), 1, seed=77)
    few_shot.write_split(tmp_path / "1imgs_class.txt", data, drawn)
    keys = {**SMALL, "low_shot.splits_from": str(tmp_path), "low_shot.splits": "1", "low_shot.shots": "1"}
    found = image.judge(run, image.config_for(run, dict(evals=("low_shot",)), keys))
    ((rows, _),) = image._splits(_of(run, keys), image.config_for(run, {}, keys).low_shot, 1, 0)
    assert rows.tolist() == drawn.tolist()
    assert [column["over"] for column in found["columns"]] == ["splits", "splits"]


def _of(run, keys):
    step = checkpoint.find(run)
    return image._judged(run, step, checkpoint.meta(run, step), image.config_for(run, {}, keys), run)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--evals=linear,knnn"], "--evals: knnn is not one of linear, knn, low_shot, robustness"),
        (["--config.low_shot.shots=500"], "config.low_shot.shots: 500 images per class, but the largest class has"),
        (["--config.knn.k=3"], "--config.knn.k: unknown key"),
        (["--data=/nowhere"], "data.name: no folder /nowhere"),
        (["--evaluators=test"], "--evaluators: names sets of a run"),
        (["--workdir=/nowhere"], "--workdir: /nowhere holds no checkpoint"),
        (["--config.data.pool=projection"], "the model of .* has no projection"),
    ],
)
def test_bad_input_is_one_line(judged, arguments, message, capsys):
    code = main(["evaluate", "--suite=image", f"--workdir={judged[0]}", *ARGUMENTS, *arguments])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and re.search(message, said), said


def test_options_of_a_suite_need_one(judged, capsys):
    assert main(["evaluate", f"--workdir={judged[0]}", "--evals=knn"]) == 2
    assert "--evals: only a suite knows it; add --suite=image" in capsys.readouterr().err


def test_weights_that_saw_no_data_here_need_some(tmp_path):
    train(RECIPE, tmp_path / "run")
    with pytest.raises(UserError, match="--data: .*run was not trained on data here; name a labelled dataset"):
        image.config_for(storage.path(tmp_path / "run"), {})


def test_published_figures_stand_beside_their_dataset_only():
    test = dict(name="imagenet2012", split="validation", images=49_999, unreadable=1, unlabelled=0)
    dataset = dict(classes=1000, train=dict(test, images=1_281_167), test=test)
    column = dict(task="linear", over="seeds", values=dict(accuracy=[0.8, 0.82]), chosen={})
    shots = dict(task="5-shot (logistic)", over="splits", values=dict(accuracy=[0.5, 0.6]), chosen={})
    result = dict(run="a/h14", step=0, model="H/14", dataset=dataset, columns=[column, shots])
    table = suite_table.build([result], published.beside([result]))
    text = suite_table.markdown(table)
    assert "| h14 | 81.0 ± 1.4 | 55.0 ± 7.1 |" in text
    assert "| MAWS ViT-H/14, published | 87.5* | 79.8† |" in text
    assert "* its protocol is not published" in text and "† the authors' own five splits, VPT" in text
    other = dict(result, dataset=dict(dataset, test=dict(test, name="imagenet_v2")))
    assert not published.beside([other])


def test_runs_of_one_name_are_told_apart():
    column = dict(task="linear", over=None, values=dict(accuracy=[0.5]), chosen={})
    results = [dict(run=f"{base}/mae", step=1, model="B/16", dataset={}, columns=[column]) for base in ("a", "b")]
    assert [row["name"] for row in suite_table.build(results, [])["rows"]] == ["a/mae", "b/mae"]
