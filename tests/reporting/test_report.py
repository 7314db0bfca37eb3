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
        assert set(entry) == {"init", "task", "metric", "mean", "std", "seeds"}
        assert entry["metric"] == "test/accuracy"
        assert 0 < entry["mean"] < 1 and entry["std"] > 0
        assert entry["seeds"] == (10 if entry["task"] == "5-shot" else 3)  # splits of one run; runs


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
    entry = write(folder)[1]["MAE", "5-shot"]
    everything = np.concatenate(draws)
    assert entry["seeds"] == 5
    assert entry["mean"] == pytest.approx(everything.mean(), abs=1e-12)
    assert entry["std"] == pytest.approx(everything.std(ddof=1), abs=1e-12)


def test_the_highest_mean_of_each_task_is_marked(pipeline):
    folder = pipeline()
    for seed in range(3):
        edit(folder / f"linear_wsp_s{seed}" / "result.json", metrics={"test/accuracy": 0.999})
    page, _ = write(folder)
    assert page.count("<small>highest</small>") == 3
    assert re.search(r'class="best">99\.9 ± 0\.0<small>highest</small>', page)


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
    texts = [set(re.findall(r">([^<>\n]+)</text>", chart)) for chart in charts]
    for compared in texts[:2]:  # radar and dots
        assert {"random", "MAE", "WSP", "MAE→WSP", "finetune", "linear", "5-shot"} <= compared
    assert {"random", "MAE", "WSP", "MAE→WSP", "images seen", "loss"} <= texts[5]
    assert "held-out accuracy (%)" in texts[6]


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
