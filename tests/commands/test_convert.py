"""`convert` on the command line: its refusals, its all-or-nothing folder, and what its run is good for."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import convert
from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from tests.commands.conftest import timm_shapes
from tests.conftest import ROOT, environment

STORED = ROOT / "tests" / "parity" / "stored"
TIMM = STORED / "timm_token" / "model.safetensors"


def one_line(capsys) -> str:
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said
    return said


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "--from"),
        (["--from=nowhere.pth", "--to=run"], "nowhere.pth: does not exist"),
        (["--from=maws:vit_b17", "--to=run"], "did you mean maws:vit_b16"),
        (["--from=ftp://127.0.0.1/a.pth", "--to=run"], "only http"),
        ([f"--from={TIMM}", "--to=run"], "--heads: "),
        ([f"--from={TIMM}", "--to=run", "--heads=5"], "width"),
        ([f"--from={TIMM}", "--to=run", "--heads=3", "--format=tim"], "did you mean timm"),
        ([f"--from={TIMM}", "--to=run", "--heads=3", "--format=swag"], "is not of format swag"),
        ([f"--from={TIMM}", "--to=run", "--heads=3", "--image_size=33"], "does not divide"),
        ([f"--from={TIMM}", "--to=run.pth", "--to-format=mae"], "holds no checkpoint"),
        (["--from=runs/x", "--to=run.pth", "--to-format=timmy"], "is not one of timm"),
        (["--from=runs/x", "--to=run.txt", "--to-format=timm"], "must end in .safetensors"),
        (["--from=runs/x", "--to=a.safetensors", "--to-format=huggingface"], "names a file"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 2
    assert words in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken_is_left_alone(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("mine")
    assert main(["convert", f"--from={TIMM}", f"--to={tmp_path / 'run'}", "--heads=3"]) == 2
    assert "exists already" in one_line(capsys)
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "mine"]


def test_a_full_disk_leaves_nothing(tmp_path, capsys, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert main(["convert", f"--from={TIMM}", f"--to={tmp_path / 'run'}", "--heads=3"]) == 2
    assert "no space left" in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_an_error_while_writing_leaves_nothing(tmp_path, monkeypatch):
    from mae_pp_jax.interop.importing import Import

    read = Import.values
    keys = []

    def fail_late(self, key):
        keys.append(key)
        if len(keys) == 20:
            raise UserError("--from: it broke")
        return read(self, key)

    monkeypatch.setattr(Import, "values", fail_late)
    with pytest.raises(UserError, match="it broke"):
        convert.import_file(str(TIMM), str(tmp_path / "run"), heads=3)
    assert not list(tmp_path.iterdir())


def peak_kib(pid: int) -> int:
    """Peak memory of a running process, by Linux. getrusage would count what this process held when it forked."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_big_files_need_little_memory_and_a_kill_leaves_no_half_run(tmp_path):
    """2 GiB of float32 in blocks of 200 MiB: well below 2 GiB of memory, measured from outside."""
    width, blocks = 2048, 10
    shapes = timm_shapes(width, patch=14, tokens=257, blocks=blocks)
    rng = np.random.default_rng(0)
    save_file({key: rng.random(shape, np.float32) for key, shape in shapes.items()}, tmp_path / "big.safetensors")
    command = [sys.executable, "-m", "mae_pp_jax", "convert", f"--from={tmp_path / 'big.safetensors'}"]
    command += [f"--to={tmp_path / 'run'}", "--heads=16"]
    half = tmp_path / ".run.converting" / "checkpoints"
    killed = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    while not list(half.rglob("*.0")) and killed.poll() is None:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert half.is_dir() and not (tmp_path / "run").exists()
    said, peak = tmp_path / "said.txt", 0
    with said.open("w") as stderr:
        done = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=stderr, stdout=subprocess.DEVNULL)
    while done.poll() is None:
        peak = max(peak, peak_kib(done.pid))
        time.sleep(0.05)
    assert done.returncode == 0, said.read_text()
    assert 0 < peak < 1.2 * 2**20
    assert not half.exists() and (tmp_path / "run" / "result.json").is_file()


def test_an_imported_classifier_is_evaluated_on_data_at_hand(tmp_path, capsys):
    """timm's answer to these images is in the stored case; here only the way from file to metric is walked."""
    convert.import_file(str(TIMM), str(tmp_path / "run"), heads=3)
    rng = np.random.default_rng(0)
    import cv2

    for label in range(5):
        for split in ("train", "test"):
            folder = tmp_path / "photos" / split / f"class{label}"
            folder.mkdir(parents=True)
            cv2.imwrite(str(folder / "a.png"), rng.integers(0, 256, (32, 32, 3), np.uint8))
    data = [f"--config.data.name={tmp_path / 'photos'}", "--config.evals.test.split=test", "--config.global_batch=8"]
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}", *data]) == 0
    (file,) = (tmp_path / "run" / "evaluations").glob("test_0_*.json")
    found = storage.read_json(file)
    assert 0 <= found["metrics"]["test/accuracy"] <= 1 and found["step"] == 0


def test_the_list_names_licence_and_source(capsys):
    assert main(["convert", "--list"]) == 0
    said = capsys.readouterr().out
    for words in ("maws:vit_6.5b14_ft_in1k", "CC-BY-NC 4.0", "https://", "at 518: 90.064", "not run"):
        assert words in said


def test_every_recipe_of_a_released_model_builds(root):
    from mae_pp_jax.core import config as config_lib
    from mae_pp_jax.interop import released
    from mae_pp_jax.stages import registry

    recipes = {release.recipe for release in released.RELEASES.values() if release.recipe.startswith("configs/")}
    assert len(recipes) == 18
    for recipe in recipes:
        registry.create(registry.resolve(config_lib.load_file(str(root / pathlib.Path(recipe)))))
