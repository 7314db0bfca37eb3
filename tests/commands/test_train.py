"""What people see of a run: its folder, its lines and its progress bar; and what `--help` teaches."""

import json
import os
import pty
import re
import subprocess
import sys
import termios

import cv2
import pytest

from mae_pp_jax.__main__ import main
from tests.conftest import ROOT, TINY_MAE, arguments, environment

MAE = "configs/mae/digits.py"
# Sides of the picture of eight images, each original, masked and reconstructed: 64 pixels and gaps of 4 between them.
GRID = [3 * 68 + 4, 8 * 68 + 4]


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """(folder of a run with TensorBoard and profile, what it showed on a terminal of 200 columns)."""
    folder = tmp_path_factory.mktemp("watched") / "run"
    changes = {**TINY_MAE, "tensorboard": "true", "profile": "true"}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    process = subprocess.Popen(
        [sys.executable, "-m", "mae_pp_jax", "train", f"--config={MAE}", f"--workdir={folder}", *arguments(changes)],
        cwd=ROOT,
        env=environment(),
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return folder, shown.decode()


def test_result(mae_run):
    result = json.loads((mae_run / "result.json").read_text())
    assert result["stage"] == "mae" and result["step"] == 12 and result["examples_seen"] == 12 * 32
    assert result["metrics"]["test/loss"] == rows(mae_run)[-1]["test/loss"]
    names = {"train/loss", "train/gradient_norm", "train/learning_rate", "data/unreadable", "test/loss"}
    assert result["metrics"].keys() == names and result["metrics"]["data/unreadable"] == 0
    assert result["examples_per_second"] > 0 and result["wall_seconds"] > 0
    assert re.fullmatch("[0-9a-f]{64}", result["params_sha256"])
    assert result["lineage"] == [] and result["dataset"]["records"] == 1437
    assert result["revision"] and result["seed"] == 0 and result["train_flops_per_example"] > 0


def test_config_and_rows(mae_run):
    config = json.loads((mae_run / "config.json").read_text())
    assert config["stage"] == "mae" and config["model"]["width"] == 16 and config["optim"]["b2"] == 0.95
    train = [row for row in rows(mae_run) if "train/loss" in row]
    assert [row["step"] for row in train] == [2, 4, 6, 8, 10, 12]
    assert all(row["examples_seen"] == 32 * row["step"] for row in train)
    assert [row["step"] for row in rows(mae_run) if "test/loss" in row] == [6, 12]


def test_log_has_plain_lines(mae_run):
    log = (mae_run / "log.txt").read_text()
    assert "\r" not in log and "\x1b" not in log
    for words in ("encoder/patch_embed/kernel", "Total: 11,968", "FLOPs per step", "mesh: data", "12 test/loss"):
        assert words in log
    assert re.search(r"mae step 10/12 loss \d\.\d+ .*images/s, \d+:\d\d left", log)
    stamp, table = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [DIWE] ", r"[+|]|Total|  "
    assert all(re.match(f"{stamp}|{table}", line) for line in log.splitlines())


def test_pictures(mae_run):
    for step in (6, 12):
        picture = cv2.imread(str(mae_run / "pictures" / f"reconstruction_{step}.png"))
        assert sorted(picture.shape) == [3, *GRID]
        assert picture.std() > 10


def test_tensorboard(watched):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    folder, _ = watched
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    for name in ("train/loss", "test/loss", "train/learning_rate"):
        on_board = {event.step: tensor_util.make_ndarray(event.tensor_proto).item() for event in events.Tensors(name)}
        assert on_board == pytest.approx({row["step"]: row[name] for row in rows(folder) if name in row})
    assert all(tensor_util.make_ndarray(e.tensor_proto).item() > 0 for e in events.Tensors("speed/examples_per_second"))
    assert events.SummaryMetadata("reconstruction").plugin_data.plugin_name == "images"
    *size, png = tensor_util.make_ndarray(events.Tensors("reconstruction")[-1].tensor_proto)
    assert sorted(map(int, size)) == GRID and png.startswith(b"\x89PNG")


def test_profile_leaves_a_trace(watched):
    folder, _ = watched
    (trace,) = (folder / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 10_000


def test_progress_bar_on_a_terminal(watched):
    _, shown = watched
    last = [part for part in re.split(r"[\r\n]", shown) if part.startswith("mae:")][-1]
    assert "100%" in last and re.search(r"\d<\d+:\d\d", last) and "images/s" in last and "loss " in last
    assert "step 12 test/loss" in shown  # a line of its own, above the bar
    assert "mae step 10/12" not in shown  # the bar says it


def test_keys(capsys):
    assert main(["train", f"--config={ROOT / MAE}", "--keys", "--config.seed=7"]) == 0
    listed = capsys.readouterr().out
    assert "--config.seed=7\n    seed of initialisation" in listed
    assert "--config.model.pool=" in listed and "(cls | mean)" in listed and "--config.mae.decoder_width=48" in listed


@pytest.mark.parametrize(
    "verb", [[], ["train"], ["pipeline"], ["evaluate"], ["report"], ["data"], ["data", "prepare"], ["data", "info"]]
)
def test_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    assert stop.value.code == 0
    help = capsys.readouterr().out
    assert help.startswith("usage: ")
    assert "python -m mae_pp_jax " + " ".join(verb) in help  # an example to copy


def test_evaluate_gives_the_metrics_of_the_result(mae_run, capsys):
    assert main(["evaluate", f"--workdir={mae_run}", "--evaluators=test"]) == 0
    printed = json.loads(capsys.readouterr().out)
    wanted = json.loads((mae_run / "result.json").read_text())["metrics"]["test/loss"]
    assert printed == {"step": 12, "test/loss": pytest.approx(wanted, rel=1e-6)}
    (file,) = (mae_run / "evaluations").glob("test_12_*.json")
    written = json.loads(file.read_text())
    assert written["metrics"] == {"test/loss": printed["test/loss"]} and written["step"] == 12
    assert written["dataset"]["split"] == "test" and written["dataset"]["records"] == 360
    assert len(written["checkpoint_sha256"]) == 64 and written["overrides"] == {}


def test_evaluations_on_other_data_stand_beside_one_another(mae_run, tmp_path, capsys):
    """Each set has its file and its metrics; the same command again writes the same file."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(mae_run, run)
    more = ["--config.evals.part.split=train[:10%]", "--evaluators=part,test"]
    assert main(["evaluate", f"--workdir={run}", *more]) == 0
    first = json.loads(capsys.readouterr().out)
    assert set(first) == {"step", "test/loss", "part/loss"} and first["part/loss"] != first["test/loss"]
    assert main(["evaluate", f"--workdir={run}", "--config.evals.part.split=train[10%:20%]", "--evaluators=part"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert main(["evaluate", f"--workdir={run}", *more]) == 0
    written = [json.loads(file.read_text()) for file in (run / "evaluations").glob("part_12_*.json")]
    assert {w["dataset"]["split"]: w["metrics"]["part/loss"] for w in written} == {
        "train[:10%]": first["part/loss"],
        "train[10%:20%]": second["part/loss"],
    }
    assert len({w["dataset"]["fingerprint"] for w in written}) == 2
    assert main(["evaluate", f"--workdir={run}", "--evaluators=prat"]) == 2
    assert "prat is not one of this stage's: test, reconstruction" in capsys.readouterr().err
