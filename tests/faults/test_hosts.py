"""Runs of several real processes on this machine, joined by `launch/local.sh`: what one process does, they do too."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands.train import train
from mae_pp_jax.core import lease
from tests.conftest import ROOT, TINY, TINY_MAE, arguments, command, environment
from tests.faults.conftest import assert_same_run, result, rows, saved

MAE = "configs/mae/digits.py"
BATCH, STEPS = 8, 12
RECORDS = {"train": 160, "test": 32}  # more than a run reads, so that each is read once; full batches
QUICK = {
    **TINY_MAE,
    "global_batch": str(BATCH),
    "train_for": f"{STEPS} steps",
    "data.crop": "random_resized",
    "data.flip": "true",
    "data.prefetch": "1",
}
# Stands in for Python: notes which files of the dataset a process opens, then runs the command as it is.
RECORDER = """#!{python}
import os, sys
if sys.argv[1:2] == ["-c"]:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
sys.path.insert(0, "{root}")
from mae_pp_jax.data import folder
inner, process = folder.FolderSource.__getitem__, sys.argv[-1].removeprefix("--process=")
def noted(self, index):
    with open(f"{reads}.{{process}}", "a") as file:
        file.write(self.describe(index) + "\\n")
    return inner(self, index)
folder.FolderSource.__getitem__ = noted
from mae_pp_jax.__main__ import main
sys.exit(main(sys.argv[3:]))
"""


def local(processes: int, *args: str, python: str = sys.executable, **kwargs) -> subprocess.Popen:
    """A job of `launch/local.sh` under way; kill it with `stop`."""
    return subprocess.Popen(
        [str(ROOT / "launch/local.sh"), "-n", str(processes), *args],
        cwd=ROOT,
        env={**environment(), "PYTHON": python},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


def ended(job: subprocess.Popen, timeout: float = 240) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a job; nothing of it is left."""
    try:
        out, err = job.communicate(timeout=timeout)
    finally:
        job.terminate()
        job.wait()
    return job.returncode, out, err


def said(folder: pathlib.Path) -> str:
    """What the processes other than 0 printed, but for gloo's greeting."""
    logs = folder.with_name(folder.name + ".processes").glob("*.log")
    lines = [line for path in sorted(logs) for line in path.read_text().splitlines()]
    return "\n".join(line for line in lines if not line.startswith("[Gloo]"))


def process_of(folder: pathlib.Path, index: int) -> int:
    """The process number of one process of a run."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:  # gone meanwhile
            continue
        if f"--workdir={folder}" in words and words[-2:-1] == [f"--process={index}"] and "mae_pp_jax" in words:
            return int(path.parent.name)
    raise AssertionError(f"no process {index} of {folder}")


def losses(folder: pathlib.Path) -> list[float]:
    return [value for row in rows(folder) for name, value in row.items() if name.endswith("/loss")]


def draw(folder: pathlib.Path, records: dict[str, int]) -> pathlib.Path:
    """A dataset of small pictures; its path."""
    for split, count in records.items():
        for index in range(count):
            path = folder / split / "ab"[index % 2] / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.random.default_rng(index).integers(0, 255, (12, 12, 3), np.uint8))
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Pictures, a run of four processes on them that notes its reads, and the same run of one process."""
    folder = tmp_path_factory.mktemp("hosts")
    pictures = draw(folder / "pictures", RECORDS)
    quick = {**QUICK, "data.name": str(pictures)}
    recorder = folder / "python"
    recorder.write_text(RECORDER.format(python=sys.executable, root=ROOT, reads=folder / "reads"))
    recorder.chmod(0o755)
    args = ["train", f"--config={MAE}", f"--workdir={folder / 'four'}", *arguments(quick)]
    job = local(4, *args, python=str(recorder))
    train(str(ROOT / MAE), folder / "one", quick)  # on the eight simulated devices of this process
    code, out, err = ended(job)
    assert code == 0, err + said(folder / "four")
    return folder, quick, out + err


def test_four_processes_train_as_one(shared):
    folder, _, _ = shared
    four, one = losses(folder / "four"), losses(folder / "one")
    assert len(four) == STEPS // 2 + 2
    np.testing.assert_allclose(four, one, rtol=1e-5)
    assert np.ptp(one) > 1e-3
    for name in ("step", "examples_seen", "dataset", "parameters"):
        assert result(folder / "four")[name] == result(folder / "one")[name]
    pictures = [cv2.imread(str(folder / run / f"pictures/reconstruction_{STEPS}.png")) for run in ("four", "one")]
    assert np.abs(np.subtract(*pictures, dtype=np.int32)).max() <= 1


def test_only_process_0_talks_and_writes(shared):
    folder, _, printed = shared
    assert printed.count(f"step {STEPS}/{STEPS}") == 1
    assert said(folder / "four") == ""
    assert (folder / "four/log.txt").read_text().count("compiled the train step") == 1
    names = {path.name for path in (folder / "four").iterdir()}
    assert names == {path.name for path in (folder / "one").iterdir()}


def test_no_process_reads_anothers_data(shared):
    folder, _, _ = shared
    reads = [set((folder / f"reads.{process}").read_text().splitlines()) for process in range(4)]
    for split, count in RECORDS.items():
        parts = [{name for name in names if f"/{split}/" in name} for names in reads]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert all(len(part) >= min(STEPS * BATCH, count) // 4 for part in parts)


def test_processes_are_timed_together(shared, tmp_path):
    _, quick, _ = shared
    args = ["bench", f"--config={MAE}", "--steps=3", "--input", f"--json={tmp_path / 'bench.json'}", *arguments(quick)]
    code, out, err = ended(local(2, *args))
    assert code == 0, err
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["global_batch"] == BATCH and found["devices"] == 2
    assert found["step"]["windows"] * found["step"]["window_steps"] >= 3
    assert min(found[name]["examples_per_second"] for name in ("step", "input", "together")) > 0
    assert out.count("images per step") == 1 and "of process 0 of 2" in out


@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_of_four_processes_resumes_on_fewer(shared, tmp_path, processes):
    folder, quick, _ = shared
    at = pathlib.Path(shutil.copytree(folder / "four", tmp_path / "run"))
    (at / "result.json").unlink()
    shutil.rmtree(at / "checkpoints" / str(STEPS))
    left = saved(at)[-1]
    args = ["train", f"--config={MAE}", f"--workdir={at}", *arguments(quick)]
    if processes == 1:
        done = command(*args)
        code, err = done.returncode, done.stderr
    else:
        code, _, err = ended(local(processes, *args))
    assert code == 0, err + said(at)
    assert f"resumed {at} at step {left}" in err
    np.testing.assert_allclose(losses(at), losses(folder / "one"), rtol=1e-5)


def test_what_is_wrong_on_one_process_ends_all_with_one_line(shared, tmp_path):
    _, quick, _ = shared
    other = tmp_path / "python"  # gives process 1 another config
    script = 'case "$*" in *--process=1) set -- "$@" --config.seed=5 ;; esac'
    other.write_text(f'#!/bin/sh\n{script}\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    at = tmp_path / "run"
    args = ["train", f"--config={MAE}", f"--workdir={at}", *arguments(quick)]
    code, _, err = ended(local(2, *args, python=str(other)))
    assert code == 2
    assert [line for line in (err + said(at)).splitlines() if "error" in line] == [err.splitlines()[-1]]
    assert err.splitlines()[-1].startswith("error: --config: process 1 has another one than process 0")
    assert not (at / "result.json").exists()


TRAIN = ["train", f"--config={MAE}", "--workdir=runs/none"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--process=1"], "--coordinator: missing"),
        (["--coordinator=here:1", "--processes=2"], "--process: missing"),
        (["--coordinator=here", "--processes=2", "--process=1"], "--coordinator: here is not HOST:PORT"),
        (["--coordinator=here:99999", "--processes=2", "--process=1"], "--coordinator: here:99999 is not HOST:PORT"),
        (["--coordinator=here:1", "--processes=0", "--process=0"], "--processes: 0 is not a whole number from 1"),
        (["--coordinator=here:1", "--processes=2", "--process=2"], "--process: 2 is not one of 2 processes"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(flags, line, capsys):
    assert main([*TRAIN, *flags]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1 and printed[0].startswith(f"error: {line}")


def test_the_environment_may_say_which_process_this_is(monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "many")
    assert main([*TRAIN, "--coordinator=here:1", "--process=0"]) == 2
    assert "--processes: many is not a whole number" in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(capsys):
    with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main([*TRAIN, f"--coordinator=127.0.0.1:{port}", "--processes=2", "--process=0"]) == 2
    assert f"error: --coordinator: cannot listen on port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(("process", "line"), [(0, "--processes: not all 2"), (1, "--coordinator: no answer")])
def test_processes_that_do_not_come_are_waited_for_as_long_as_said(process, line, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={process}", "--join_timeout=2"]
    done = command("train", f"--config={MAE}", f"--workdir={tmp_path / 'run'}", *flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {line}") and "within 2 s" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


LONG = {
    **QUICK,
    "train_for": "120 steps",
    "eval_every": "40 steps",
    "log_every": "4 steps",
    "checkpoint.every": "10 steps",
}


def long_run(folder: pathlib.Path, **changes: str) -> list[str]:
    return ["train", f"--config={MAE}", f"--workdir={folder}", *arguments({**LONG, **changes})]


def until_saved(job: subprocess.Popen, folder: pathlib.Path, step: int) -> None:
    while not (folder / "checkpoints" / str(step)).is_dir():
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    code, _, err = ended(local(4, *long_run(folder)))
    assert code == 0, err
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 2])
def test_when_one_process_is_killed_the_others_end_and_a_restart_resumes_exactly(undisturbed, tmp_path, killed):
    folder = tmp_path / "run"
    job = local(4, *long_run(folder))
    until_saved(job, folder, 30)
    os.kill(process_of(folder, killed), signal.SIGKILL)
    began = time.monotonic()
    code, _, err = ended(job, timeout=60)
    print(f"ended {time.monotonic() - began:.1f} s after the kill")
    assert code == 128 + signal.SIGKILL
    assert f"local.sh: process {killed} ended with 137" in err
    if killed:
        assert "stopped: a process of this run is gone" in err and "the same command resumes" in err
    assert not (folder / "result.json").exists()
    code, _, err = ended(local(4, *long_run(folder)))
    assert code == 0 and f"resumed {folder} at step" in err
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_the_same_step_of_all(undisturbed, tmp_path):
    folder = tmp_path / "run"
    job = local(4, *long_run(folder))
    until_saved(job, folder, 30)
    os.kill(process_of(folder, 3), signal.SIGTERM)
    code, _, err = ended(job, timeout=120)
    step = saved(folder)[-1]
    assert code == 75 and 30 <= step < 120
    assert (err + said(folder)).count(f"stopped: preempted at step {step}; state saved") == 1
    code, _, err = ended(local(4, *long_run(folder)))
    assert code == 0 and f"resumed {folder} at step {step}" in err
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_reaches_all(tmp_path, signal_number):
    folder = tmp_path / "run"
    # An interactive shell leaves SIGINT to its commands; what a test starts may have inherited that it is ignored.
    job = local(2, *long_run(folder), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    until_saved(job, folder, 10)
    job.send_signal(signal_number)
    code, _, err = ended(job, timeout=120)
    assert code == 75 and "stopped: preempted at step" in err


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all(tmp_path):
    explode = {"optim.lr": "10", "optim.lr_batch": "0", "optim.warmup": "0 steps", "optim.weight_decay": "1"}
    folder = tmp_path / "run"
    code, _, err = ended(local(2, *long_run(folder, **{**explode, "log_every": "1 steps"})))
    assert code == 3
    assert (err + said(folder)).count("stopped: step ") == 1 and "not finite" in err
    assert not (folder / "lease").exists()


@pytest.mark.slow
def test_parameters_split_over_processes_give_the_same_losses(shared, tmp_path):
    folder, quick, _ = shared
    for name, mesh in (("fsdp", {"mesh.fsdp": "4"}), ("tensor", {"mesh.tensor": "2", "mesh.fsdp": "2"})):
        at = tmp_path / name
        args = ["train", f"--config={MAE}", f"--workdir={at}", *arguments({**quick, **mesh})]
        code, _, err = ended(local(4, *args))
        assert code == 0, err + said(at)
        np.testing.assert_allclose(losses(at), losses(folder / "one"), rtol=1e-5)


PIPELINE = """
import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.title, c.data = "many processes", "digits_hashtags"
    c.stages = [
        dict(name="mae", config="{root}/configs/mae/digits.py"),
        dict(name="wsp", config="{root}/configs/wsp/digits.py", init_from="mae"),
        dict(name="linear", config="{root}/configs/linear/digits.py", init_from="mae"),
        dict(name="low_shot", config="{root}/configs/low_shot/digits.py", init_from="mae"),
        dict(name="classify", config="{root}/configs/classify/digits.py", init_from="mae"),
    ]
    return c
"""


@pytest.mark.slow
def test_a_pipeline_and_its_evaluation_give_what_one_process_gives(tmp_path):
    recipe = tmp_path / "pipeline.py"
    recipe.write_text(PIPELINE.format(root=ROOT))
    stages = {
        "mae": TINY_MAE,
        "wsp": TINY,
        "linear": TINY,
        "low_shot": {**TINY, "global_batch": "40", "shots": "2"},
        "classify": TINY,
    }
    overrides = arguments({f"{stage}.{key}": value for stage, keys in stages.items() for key, value in keys.items()})
    for name in ("two", "one"):
        args = ["pipeline", f"--config={recipe}", f"--workdir={tmp_path / name}", *overrides]
        if name == "two":
            code, _, err = ended(local(2, *args))
        else:
            done = command(*args, "--workers=1", devices=2)
            code, err = done.returncode, done.stderr
        assert code == 0, err
    for stage in stages:
        two, one = (result(tmp_path / name / stage)["metrics"] for name in ("two", "one"))
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6), stage
    assert (tmp_path / "two/report.html").is_file()
    code, out, err = ended(local(2, "evaluate", f"--workdir={tmp_path / 'two/classify'}"))
    assert code == 0, err
    test = {
        name: value for name, value in result(tmp_path / "two/classify")["metrics"].items() if name.startswith("test/")
    }
    assert json.loads(out[out.index("{") :]) == {"step": 12, **test}


# Stands in for Python: process 1 alone cannot read the newest checkpoint.
ONE_IS_BLIND = """#!{python}
import os, sys
if sys.argv[1:2] == ["-c"]:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
sys.path.insert(0, "{root}")
from mae_pp_jax.core import leaves
inner = leaves.read
def blind(found, wanted):
    if sys.argv[-1] == "--process=1" and any(leaf.step == 12 for leaf in found.values()):
        raise OSError("stale file handle")
    return inner(found, wanted)
leaves.read = blind
from mae_pp_jax.__main__ import main
sys.exit(main(sys.argv[3:]))
"""


def test_a_checkpoint_that_one_process_cannot_read_is_passed_over_by_all(mae_run, tmp_path):
    folder, python = pathlib.Path(shutil.copytree(mae_run, tmp_path / "run")), tmp_path / "python"
    (folder / "result.json").unlink()
    python.write_text(ONE_IS_BLIND.format(python=sys.executable, root=ROOT))
    python.chmod(0o755)
    args = ["train", f"--config={MAE}", f"--workdir={folder}", *arguments(TINY_MAE)]
    code, _, err = ended(local(2, *args, python=str(python)))
    assert code == 0, err + said(folder)
    assert "checkpoints/12 is damaged (OSError: stale file handle)" in err
    assert f"resumed {folder} at step 8" in err
    assert (folder / "damaged_checkpoints" / "12").is_dir() and saved(folder)[-1] == 12
    assert not (folder / "lease").exists()


def test_the_lease_of_a_run_of_many_refuses_all(mae_run, tmp_path):
    folder = pathlib.Path(shutil.copytree(mae_run, tmp_path / "run"))
    (folder / "result.json").unlink()
    args = ["train", f"--config={MAE}", f"--workdir={folder}", *arguments(TINY_MAE)]
    with lease.hold(folder):
        code, _, err = ended(local(2, *args))
    assert code == 2
    assert f"is in use by process {os.getpid()}" in err and "in use" not in said(folder)
