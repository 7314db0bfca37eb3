"""The report of a pipeline's folder: its numbers, its page, and what it says when pieces are missing."""

import argparse
import html.parser
import json
import re
import shutil
import xml.etree.ElementTree

import numpy as np
import pytest

from mae_pp_jax import reporting
from mae_pp_jax.commands import report as report_command
from mae_pp_jax.core.errors import UserError


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write(folder):
    """(text of the page, {(init, task): entry of the table})."""
    page, table = reporting.write(folder)
    return page.read_text("utf-8"), {(e["init"], e["task"]): e for e in json.loads(table.read_text("utf-8"))}


@pytest.fixture(scope="module")
def finished(build_pipeline, tmp_path_factory):
    """(folder, text of the page) of a pipeline whose runs are all done; for tests that change nothing in it."""
    folder = build_pipeline(tmp_path_factory.mktemp("finished") / "run")
    return folder, write(folder)[0]


def test_json_schema_and_order(finished):
    entries = json.loads((finished[0] / "report.json").read_text("utf-8"))
    pairs = [(i, t) for i in ("random", "MAE", "WSP", "MAE→WSP") for t in ("finetune", "linear", "5-shot")]
    assert [(e["init"], e["task"]) for e in entries] == pairs
    for entry in entries:
        assert set(entry) == {"init", "task", "metric", "mean", "std", "seeds", "splits"}
        assert entry["metric"] == "test/accuracy"
        assert 0 < entry["mean"] < 1 and entry["std"] > 0
        assert (entry["seeds"], entry["splits"]) == ((1, 10) if entry["task"] == "5-shot" else (3, None))
    assert "<small>10 splits, 1 seed</small>" in finished[1] and "10 seeds" not in finished[1]


def test_seeds_are_grouped_to_mean_and_sample_std(pipeline):
    folder = pipeline()
    values = [0.90, 0.93, 0.99]
    for seed, value in enumerate(values):
        edit(folder / f"linear_mae_s{seed}" / "result.json", metrics={"test/accuracy": value})
    page, entries = write(folder)
    entry = entries["MAE", "linear"]
    assert entry["seeds"] == 3
    assert entry["mean"] == pytest.approx(np.mean(values), abs=1e-12)
    assert entry["std"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert "94.0 ± 4.6" in page


def test_one_seed_has_no_std(pipeline):
    page, entries = write(pipeline(seeds=1))
    assert entries["WSP", "finetune"]["std"] is None
    assert entries["WSP", "finetune"]["seeds"] == 1
    assert "1 seed<" in page


def test_low_shot_runs_pool_as_their_single_values_would(pipeline):
    folder = pipeline()
    draws = [np.array([0.80, 0.84, 0.86]), np.array([0.70, 0.78])]
    described = json.loads((folder / "pipeline.json").read_text())
    first = next(s for s in described["stages"] if s["name"] == "low_shot_mae_s0")
    described["stages"].append({**first, "name": "low_shot_mae_s1"})
    (folder / "pipeline.json").write_text(json.dumps(described))
    shutil.copytree(folder / "low_shot_mae_s0", folder / "low_shot_mae_s1")
    for seed, values in enumerate(draws):
        metrics = {
            "test/accuracy": values.mean(),
            "test/accuracy_std": values.std(ddof=1),
            "test/splits": len(values),
        }
        edit(folder / f"low_shot_mae_s{seed}" / "result.json", metrics=metrics)
    page, entries = write(folder)
    entry, everything = entries["MAE", "5-shot"], np.concatenate(draws)
    assert (entry["seeds"], entry["splits"]) == (2, 5) and "5 splits, 2 seeds" in page
    assert entry["mean"] == pytest.approx(everything.mean(), abs=1e-12)
    assert entry["std"] == pytest.approx(everything.std(ddof=1), abs=1e-12)


def test_the_highest_mean_of_each_task_is_marked(pipeline):
    folder = pipeline()
    for seed in range(3):
        edit(folder / f"linear_wsp_s{seed}" / "result.json", metrics={"test/accuracy": 0.999})
    page, _ = write(folder)
    assert page.count("<small>highest</small>") == 3
    assert re.search(r'class="best">99\.9 ± 0\.0<small>highest</small>', page)


def test_runs_of_one_seed_are_not_several_seeds(pipeline):
    folder = pipeline()
    for run, seed in enumerate((7, 7, 8)):
        edit(folder / f"linear_mae_s{run}" / "result.json", seed=seed)
    assert write(folder)[1]["MAE", "linear"]["seeds"] == 2


def texts(chart: str) -> set[str]:
    return set(re.findall(r">([^<>\n]+)</text>", chart))


def test_each_metric_goes_by_its_name_and_has_a_chart_of_its_own(pipeline):
    folder = pipeline()
    for path in folder.glob("linear_*/result.json"):
        edit(path, metrics={"test/tag_map": 0.25, "test/tags_measured": 40})
    page, entries = write(folder)
    assert entries["WSP", "linear"]["metric"] == "test/tag_map"
    charts = [chart for chart in re.findall(r"<svg.*?</svg>", page, re.S) if "of each initialisation" in chart]
    by_title = {title: texts(chart) for chart in charts for title in texts(chart) if title.startswith("held-out")}
    assert set(by_title) == {"held-out accuracy (%)", "held-out hashtag mAP (%)"} and len(charts) == 2
    assert {"linear", "25.0 ± 0.0"} <= by_title["held-out hashtag mAP (%)"]
    assert not {"finetune", "5-shot"} & by_title["held-out hashtag mAP (%)"]
    assert {"finetune", "5-shot"} <= by_title["held-out accuracy (%)"]
    assert "linear" not in by_title["held-out accuracy (%)"]
    assert "a spoke for each task" not in page  # different things on one scale
    assert page.count("<small>held-out hashtag mAP (%)</small>") == 4


def test_where_all_is_measured_by_tag_map_nothing_says_accuracy(pipeline):
    folder = pipeline(without=("classify", "linear", "low_shot"))
    for path in folder.glob("*_s?/result.json"):
        edit(path, metrics={"test/tag_map": 0.25})
    page, _ = write(folder)
    assert "accuracy" not in page.partition("How they learn")[0]
    assert "held-out hashtag mAP (%), a spoke for each task" in page


def test_the_first_evaluation_set_of_a_run_that_has_the_metric_counts(pipeline):
    folder = pipeline()
    for path in folder.glob("linear_*/result.json"):
        edit(path, metrics={"real/accuracy": None, "val/accuracy": 0.5, "train/accuracy": 0.9})
        edit(path.parent / "config.json", evals={"real": {}, "val": {}})
        rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
        rows = [{name.replace("test/", "val/"): value for name, value in row.items()} for row in rows]
        text = "".join(json.dumps(row | {"real/loss": None}) + "\n" for row in rows)
        (path.parent / "metrics.jsonl").write_text(text)
    for path in folder.glob("low_shot_*/result.json"):
        edit(path, metrics={"val/accuracy": 0.7, "val/accuracy_std": 0.1, "val/splits": 4})
        edit(path.parent / "config.json", evals={"val": {}})
    page, entries = write(folder)
    entry = entries["random", "linear"]
    assert (entry["metric"], entry["mean"]) == ("val/accuracy", 0.5)
    assert (entries["MAE", "5-shot"]["splits"], entries["MAE", "5-shot"]["std"]) == (4, 0.1)
    assert entries["random", "finetune"]["metric"] == "test/accuracy"
    assert "accuracy on val (%) of each initialisation" in page
    assert "accuracy on val (%) against examples seen" in page  # the curves of the linear probes
    assert page.count("loss against examples seen") == 4


def test_a_value_that_could_not_be_measured_is_no_result(pipeline):
    folder = pipeline(seeds=1)
    for value, init in ((None, "mae"), (float("nan"), "wsp"), (float("inf"), "mae_wsp")):
        path = folder / f"linear_{init}_s0"
        edit(path / "result.json", metrics={"test/accuracy": value})
        with (path / "metrics.jsonl").open("a") as file:
            row = {"step": 1050, "images_seen": 1050, "test/accuracy": value, "test/loss": value}
            file.write(json.dumps(row) + "\n")
    page, entries = write(folder)
    assert [init for init, task in entries if task == "linear"] == ["random"]
    assert page.count("no result") == 6  # in the table and in the chart


def test_runs_say_examples_where_older_ones_said_images(finished, tmp_path):
    folder, page = finished
    new = shutil.copytree(folder, tmp_path / "run")
    for path in [*new.glob("*/result.json"), *new.glob("*/metrics.jsonl")]:
        text = path.read_text().replace("images_seen", "examples_seen").replace("images_per", "examples_per")
        path.write_text(text)
    assert write(new)[0].replace(str(new), str(folder)) == page
    assert "256k" in page and "9.88k" in page


MAE, WSP, TEXT = (dict(run=f"runs/{name}", step=100 * n) for n, name in enumerate(("mae", "wsp", "text"), 1))


def test_where_weights_came_from_follows_the_lineage(pipeline):
    folder = pipeline(seeds=1)
    first, second, alone = MAE | {"parents": []}, WSP | {"parents": [0]}, TEXT | {"parents": []}
    cases = {
        "no other run": dict(lineage=[]),
        "mae@100 → wsp@200": dict(lineage=[MAE, WSP]),  # before lineages were graphs
        "mae@100": dict(lineage=[first], parents={"": 0}),
        "image: mae@100 → wsp@200; text: text@300": dict(
            lineage=[first, second, alone], parents={"image": 1, "text": 2}
        ),
        "(mae@100 + text@300) → wsp@200": dict(lineage=[first, alone, WSP | {"parents": [0, 1]}], parents={"": 2}),
    }
    runs = ("mae", "wsp", "mae_wsp", "classify_random_s0", "low_shot_wsp_s0")
    for run, result in zip(runs, cases.values(), strict=True):
        edit(folder / run / "result.json", **result)
    page = write(folder)[0]
    assert all(f"<td>{said}</td></tr>" in page for said in cases)


def test_a_stage_may_start_from_several(pipeline):
    folder = pipeline(seeds=1)
    described = json.loads((folder / "pipeline.json").read_text())
    stage = next(stage for stage in described["stages"] if stage["name"] == "mae_wsp")
    stage["init_from"] = {"image": "wsp", "text": "mae"}
    (folder / "pipeline.json").write_text(json.dumps(described))
    assert "image: WSP, text: MAE" in write(folder)[0]
    next(stage for stage in described["stages"] if stage["name"] == "mae")["init_from"] = "mae_wsp"
    (folder / "pipeline.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="init_from of .* goes in a circle"):
        reporting.write(folder)


def test_missing_pieces_are_said(pipeline):
    folder = pipeline(without=("mae_wsp", "linear_wsp_s0", "linear_wsp_s1", "linear_wsp_s2", "classify_mae_s1"))
    (folder / "classify_mae_s2" / "result.json").unlink()
    shutil.rmtree(folder / "mae" / "pictures")
    page, entries = write(folder)
    assert ("WSP", "linear") not in entries
    assert entries["MAE", "finetune"]["seeds"] == 1
    assert "<code>mae_wsp</code>: not run" in page
    assert "<code>classify_mae_s2</code>: unfinished" in page
    assert "6 of 31 runs are not in this report" in page
    assert "There is no reconstruction of <code>mae</code>" in page
    assert "No curves were recorded for: Low-shot" in page
    assert page.count("no result") == 2  # once in the table, once in the chart


def test_complete_pipeline_names_nothing_as_missing(finished):
    _, page = finished
    assert "not in this report" not in page
    assert "no result" not in page


def test_a_pipeline_that_has_not_begun_has_a_report(pipeline):
    folder = pipeline()
    for child in [child for child in folder.iterdir() if child.is_dir()]:
        shutil.rmtree(child)
    page, entries = write(folder)
    assert entries == {}
    assert "31 of 31 runs are not in this report" in page
    assert "No task has a result yet" in page


def test_half_written_files_of_killed_runs_do_not_stop_the_report(pipeline):
    folder = pipeline()
    with (folder / "wsp" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1010, "train/lo')
    (folder / "wsp" / "result.json").write_text('{"stage": "ws')
    (folder / "mae" / "pictures" / "reconstruction_1000.png").write_bytes(b"\x89PNG")
    edit(folder / "linear_mae_s0" / "result.json", metrics={"test/accuracy": float("nan")})
    page, entries = write(folder)
    assert "<code>wsp</code>: unfinished" in page
    assert "There is no reconstruction of <code>mae</code>" in page
    assert entries["MAE", "linear"]["seeds"] == 2


def test_text_from_files_is_escaped(pipeline):
    evil = "<script>alert(1)</script>&\"'$x_1$"
    folder = pipeline(title=evil)
    described = json.loads((folder / "pipeline.json").read_text())
    described |= dict(data=evil, config=evil)
    for stage in described["stages"]:
        if stage["report"] and stage["report"]["init"] == "MAE":
            stage["report"] = dict(init=evil, task=evil)
    (folder / "pipeline.json").write_text(json.dumps(described))
    edit(folder / "wsp" / "config.json", note=evil)
    edit(folder / "mae_wsp" / "result.json", lineage=[dict(run=evil, step=evil)])
    page, entries = write(folder)
    assert (evil, evil) in entries
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "$x_1$" in page  # text, not a formula


class _Page(html.parser.HTMLParser):
    """Collects tags, the addresses they load or link to, and ids."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        loading = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
        self.addresses += [value for name, value in attrs if name in loading]
        self.ids += [v for k, v in attrs if k == "id"]


def test_the_page_is_self_contained(finished):
    _, page = finished
    parsed = _Page()
    parsed.feed(page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert all(address.startswith(("#", "data:")) for address in parsed.addresses)
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(parsed.ids) == len(set(parsed.ids))
    inside = {address[1:] for address in parsed.addresses if address.startswith("#")}
    assert inside and inside <= set(parsed.ids)


def test_charts_are_drawn_for_every_stage_kind(finished):
    _, page = finished
    charts = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(charts) == 9  # radar, accuracies; mae loss; loss and quality of wsp, classify, linear
    for chart in charts:
        tree = xml.etree.ElementTree.fromstring(chart.replace("xlink:", ""))
        assert tree.get("role") == "img" and tree.get("aria-label")
        assert "#fd00" not in chart and "#fe00" not in chart  # every stand-in colour became one of the theme's
    shown = [texts(chart) for chart in charts]
    for compared in shown[:2]:  # radar and dots
        assert {"random", "MAE", "WSP", "MAE→WSP", "finetune", "linear", "5-shot"} <= compared
    assert {"random", "MAE", "WSP", "MAE→WSP", "examples seen", "loss"} <= shown[5]
    assert "held-out accuracy (%)" in shown[6]


def test_the_newest_reconstruction_is_shown(finished):
    _, page = finished
    assert "after 1,000 steps" in page
    assert page.count("data:image/png;base64,") == 1


def test_the_same_runs_give_the_same_bytes(finished):
    folder, page = finished
    assert write(folder)[0] == page


def test_other_data_commands_name_the_recipe(finished):
    folder, page = finished
    config = "--config=configs/pipelines/demo.py:data=cifar10"
    assert f"python -m mae_pp_jax pipeline {config} --workdir={folder}-cifar10" in page
    assert f"python -m mae_pp_jax report --workdir={folder}" in page


def test_command_prints_both_paths(pipeline, capsys):
    folder = pipeline(seeds=1)
    parser = argparse.ArgumentParser()
    report_command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["report", f"--workdir={folder}"])
    args.run(args)
    assert capsys.readouterr().out.split() == [str(folder / "report.html"), str(folder / "report.json")]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"stages": [{"stage": "mae"}]}'])
def test_a_folder_that_is_no_pipelines_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "pipeline.json").write_text(content)
    with pytest.raises(UserError) as error:
        reporting.write(tmp_path)
    assert "--workdir" in str(error.value) and "python -m mae_pp_jax pipeline" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_cannot_be_written_is_one_line(pipeline):
    folder = pipeline(seeds=1)
    (folder / "report.html.tmp").mkdir()  # stands in for a read-only disk, which a test run as root cannot make
    with pytest.raises(UserError, match="--workdir: cannot write"):
        reporting.write(folder)
