"""A full disk costs one line and the work since the last checkpoint, nothing else."""

import subprocess

from mae_pp_jax.__main__ import main
from tests.conftest import command
from tests.faults.conftest import assert_same_run, files, finish, saved, started, train_arguments, until


def fill(disk) -> None:
    """Takes what space the disk has left."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass


def test_full_while_training_then_freed(references, small_disk):
    folder = small_disk / "run"
    with started("mae", folder) as process:
        until(process, lambda: folder.joinpath("checkpoints/14").is_dir())
        fill(small_disk)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    lines = said.splitlines()
    assert [line for line in lines if "rror" in line] == lines[-1:]
    assert lines[-1].startswith("error: --workdir: ") and "no space left" in lines[-1] and str(folder) in lines[-1]
    assert saved(folder)[-1] >= 14 and not (folder / "result.json").exists()
    assert not [name for name in files(folder) if "tmp" in name]
    (small_disk / "filler").unlink()
    finish("mae", folder)
    assert_same_run(folder, references("mae"))


def test_full_from_the_start(small_disk):
    fill(small_disk)
    done = command(*train_arguments("mae", small_disk / "run"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: --workdir: ") and len(done.stderr.splitlines()) == 1
    assert "no space left" in done.stderr
    assert not (small_disk / "run").exists()


def test_read_only(small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main(train_arguments("mae", small_disk / "run")) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --workdir: ") and "read-only file system" in line
