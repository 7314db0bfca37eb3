"""A run that was interrupted, however and whenever, ends bit for bit as if it never was."""

import random
import shutil
import signal
import time

import cv2
import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from tests.conftest import command
from tests.faults.conftest import (
    assert_same_run,
    between,
    evaluating,
    files,
    finish,
    result,
    rows,
    saved,
    saving,
    started,
    train_arguments,
    until,
)


def kill(recipe, folder, moment):
    """Starts a run and ends it with SIGKILL at a moment."""
    with started(recipe, folder) as process:
        until(process, moment)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def refused(capsys, arguments) -> str:
    """The line of an error, which must be the last one of what is printed."""
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def test_killed_between_checkpoints_and_again_while_saving(references, tmp_path):
    folder = tmp_path / "run"
    kill("mae", folder, between(folder))
    assert rows(folder)[-1]["step"] > saved(folder)[-1]
    kill("mae", folder, saving(folder))
    assert rows(folder)[-1]["step"] > saved(folder)[-1]
    finish("mae", folder)
    assert_same_run(folder, references("mae"))


def test_killed_while_evaluating_with_drop_path_random_crops_and_average_of_weights(references, tmp_path):
    folder = tmp_path / "run"
    kill("classify", folder, evaluating(folder, 15))
    assert rows(folder)[-1]["step"] > saved(folder)[-1]
    finish("classify", folder)
    assert_same_run(folder, references("classify"))


def test_killed_after_the_last_checkpoint(references, tmp_path):
    folder = shutil.copytree(references("mae"), tmp_path / "run")
    (folder / "result.json").unlink()  # all that such a kill leaves undone
    finish("mae", folder)
    assert_same_run(folder, references("mae"))


def test_sigterm_saves_and_leaves(references, preempted):
    folder, code, said = preempted
    assert code == 75
    step = saved(folder)[-1]
    assert said.splitlines()[-1].startswith(f"stopped: preempted at step {step}; ")
    assert 30 <= step < 60 and max(row["step"] for row in rows(folder)) <= step
    finish("mae", folder)
    assert_same_run(folder, references("mae"))


def arrays(folder, step):
    """The largest file with parameters in a checkpoint."""
    found = (path for path in (folder / "checkpoints" / str(step) / "params").rglob("*") if path.is_file())
    return max(found, key=lambda path: path.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path):
    path.unlink()


def test_damaged_checkpoints_are_skipped(references, preempted):
    folder, _, _ = preempted
    before = saved(folder)
    for step, damage in zip(reversed(before), (truncate, flip_a_byte, delete)):
        damage(arrays(folder, step))
    half = folder / "checkpoints" / "59.orbax-checkpoint-tmp"
    shutil.copytree(folder / "checkpoints" / str(before[-1]) / "params", half / "params.orbax-checkpoint-tmp")
    done = finish("mae", folder)
    for step in before[1:]:
        assert f"checkpoints/{step} is damaged" in done.stderr
        assert (folder / "damaged_checkpoints" / str(step)).is_dir()
    assert f"{half} is not complete" in done.stderr and not half.exists()
    assert f"resumed {folder} at step {before[0]}" in done.stderr
    assert_same_run(folder, references("mae"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, flip_a_byte, delete])
@pytest.mark.parametrize("which", ["params", "train", "meta", "digest.json"])
def test_any_damaged_file_is_noticed(references, preempted, damage, which):
    folder, _, _ = preempted
    step = saved(folder)[-1]
    at = folder / "checkpoints" / str(step) / which
    damage(at if at.is_file() else max((p for p in at.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))
    done = finish("mae", folder)
    assert f"checkpoints/{step} is damaged" in done.stderr
    assert_same_run(folder, references("mae"))


def test_no_undamaged_checkpoint_is_refused(preempted, capsys):
    folder, _, _ = preempted
    for step in saved(folder):
        flip_a_byte(arrays(folder, step))
    before = files(folder)
    for _ in range(2):  # also when asked again: nothing starts over in silence
        line = refused(capsys, train_arguments("mae", folder))
        assert "none of the checkpoints" in line and str(saved(folder)[-1]) in line
        assert files(folder) == before


def test_a_finished_run_is_left_as_it_is(references, capsys):
    folder = references("mae")
    before = files(folder)
    for changed in ({}, {"profile": "true", "tensorboard": "true", "mesh__fsdp": "4"}):
        assert main(train_arguments("mae", folder, **changed)) == 0
        assert "is finished" in capsys.readouterr().err
    assert files(folder) == before


def test_another_config_is_refused_by_name(preempted, capsys):
    folder, _, _ = preempted
    before = files(folder)
    line = refused(capsys, train_arguments("mae", folder, seed="3", optim__lr="0.5"))
    assert "seed: 0 → 3" in line and "optim.lr: 0.0015 → 0.5" in line
    assert files(folder) == before


def test_mesh_and_what_only_watches_may_change(references, preempted):
    folder, _, _ = preempted
    changed = dict(mesh__data="1", mesh__fsdp="2", tensorboard="true", checkpoint__every="20 steps")
    done = command(*train_arguments("mae", folder, **changed), devices=2)
    assert done.returncode == 0, done.stderr
    assert list((folder / "tensorboard").glob("events.*"))
    now, then = result(folder), result(references("mae"))
    assert now["step"] == then["step"]
    assert now["metrics"]["test/loss"] == pytest.approx(then["metrics"]["test/loss"], rel=1e-4)


def test_other_data_is_refused(tmp_path, capsys):
    pictures, folder = tmp_path / "pictures", tmp_path / "run"

    def draw(name, width=8):
        path = pictures / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng(width).integers(0, 255, (8, width, 3), np.uint8))

    for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png"):
        draw(name)
    arguments = train_arguments("mae", folder, data__name=str(pictures), train_for="12 steps")
    assert main(arguments) == 0
    (folder / "result.json").unlink()
    before = files(folder)
    capsys.readouterr()
    draw("train/b/1.png")
    line = refused(capsys, arguments)
    assert "config.data.name" in line and "records was 2, is 3" in line
    (pictures / "train/b/1.png").unlink()
    draw("test/a/0.png", width=9)
    line = refused(capsys, arguments)
    assert "evals/test/fingerprint was" in line and "(fingerprint was" not in line
    assert files(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("recipe", ["mae", "classify"])
def test_killed_at_random_moments(references, tmp_path, recipe, seed):
    folder, log, draw = tmp_path / "run", tmp_path / "run" / "log.txt", random.Random(seed)
    for attempt in range(4):
        with started(recipe, folder) as process:
            compiled = "compiled the train step"
            until(process, lambda: log.is_file() and log.read_text().count(compiled) > attempt)
            time.sleep(draw.uniform(0.0, 1.5))
            process.kill()
            process.wait()
        print(f"seed {seed}: killed with checkpoints {saved(folder)} and {len(rows(folder))} rows")
    finish(recipe, folder)
    assert_same_run(folder, references(recipe))
