"""Short runs that are interrupted in every way, and uninterrupted ones that they must equal bit for bit."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, TINY, TINY_MAE, arguments, command, environment

# Checkpoints fall between rows and evaluations, so that a resumed run has sums and rows of both sides to join.
LENGTHS = {
    "train_for": "60 steps",
    "log_every": "3 steps",
    "eval_every": "15 steps",
    "checkpoint.every": "7 steps",
    "checkpoint.keep": "4",
}
# Everything random that a stage has, and an average of the weights beside them.
RANDOM = {"model.drop_path": "0.3", "data.crop": "random_resized", "data.flip": "true", "optim.ema": "0.9"}
RECIPES = {
    "mae": ("configs/mae/digits.py", {**TINY_MAE, **LENGTHS}),
    "classify": ("configs/classify/digits.py", {**TINY, **LENGTHS, **RANDOM}),
}


def train_arguments(recipe: str, folder: pathlib.Path, **changes: str) -> list[str]:
    """The command line of a run; `changes` are config keys with __ for the dots."""
    config, overrides = RECIPES[recipe]
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return ["train", f"--config={config}", f"--workdir={folder}", *arguments({**overrides, **changed})]


def finish(recipe: str, folder: pathlib.Path, **changes: str) -> subprocess.CompletedProcess:
    """Runs to the end, which must come."""
    done = command(*train_arguments(recipe, folder, **changes))
    assert done.returncode == 0, done.stderr
    return done


def started(recipe: str, folder: pathlib.Path):
    """A run under way; see `running`."""
    return running(train_arguments(recipe, folder))


@contextlib.contextmanager
def running(arguments: list[str]):
    """A command under way, killed with SIGKILL at the end of the block if it still lives."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mae_pp_jax", *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(process: subprocess.Popen, happened) -> None:
    """Waits for a moment in the life of a run, as its files show it."""
    while not happened():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)


def rows(folder: pathlib.Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def trained(folder: pathlib.Path, step: int):
    """The moment when the row of a step is written."""
    return lambda: any(row["step"] >= step and "train/loss" in row for row in rows(folder))


def between(folder: pathlib.Path):
    """A moment when there are rows after the newest checkpoint."""
    return lambda: (folder / "checkpoints" / "7").is_dir() and rows(folder)[-1]["step"] > saved(folder)[-1]


def evaluating(folder: pathlib.Path, step: int):
    """The moment when the row of a step is written and its evaluation is not."""
    return lambda: bool(rows(folder)) and rows(folder)[-1]["step"] == step and "test/loss" not in rows(folder)[-1]


def saving(folder: pathlib.Path):
    """The moment when another checkpoint is half-written than one that a kill has left so."""
    left = {path: path.stat().st_mtime_ns for path in (folder / "checkpoints").glob("*tmp*")}

    def happened():
        with contextlib.suppress(FileNotFoundError):  # complete meanwhile, and renamed
            return any(left.get(path) != path.stat().st_mtime_ns for path in (folder / "checkpoints").glob("*tmp*"))
        return False

    return happened


def saved(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def result(folder: pathlib.Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file and what is in it, but for the log, which grows with each start."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "log.txt")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_same_run(folder: pathlib.Path, reference: pathlib.Path) -> None:
    """Same parameters, same rows, each once, same result."""
    kinds = [(row["step"], *sorted(row)) for row in rows(folder)]
    assert len(set(kinds)) == len(kinds)
    assert (folder / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    for name in ("params_sha256", "metrics", "step", "examples_seen", "dataset", "lineage"):
        assert result(folder)[name] == result(reference)[name], name
    assert saved(folder)[-1] == saved(reference)[-1]


@pytest.fixture(scope="session")
def references(tmp_path_factory):
    """recipe → the folder of an uninterrupted run, made when first asked for."""
    made: dict[str, pathlib.Path] = {}

    def reference(recipe: str) -> pathlib.Path:
        if recipe not in made:
            made[recipe] = tmp_path_factory.mktemp("reference") / recipe
            finish(recipe, made[recipe])
        return made[recipe]

    return reference


@pytest.fixture(scope="session")
def _preempted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preempted") / "run"
    with started("mae", folder) as process:
        until(process, trained(folder, 30))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    return folder, process.returncode, said


@pytest.fixture
def preempted(_preempted, tmp_path):
    """(a copy of a run that was sent SIGTERM after step 30, its exit code, what it printed)."""
    folder, code, said = _preempted
    return pathlib.Path(shutil.copytree(folder, tmp_path / "run")), code, said


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MB; mounting it needs the right to."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if not mount or os.getuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("not permitted to mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
