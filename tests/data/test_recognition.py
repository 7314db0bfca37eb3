"""A dataset's folder is not taken for that of a run."""

import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import recognition
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "file",
    [
        *("dataset_info.json", "1.0.0/dataset_info.json", "cat/1.jpg", "cat/IMG.JPG", "1.png", "train/cat/1.webp"),
        *("shard-000.tar", "train.tar.gz", "part.parquet", "x-train.array_record-00000-of-00001", "val/dog/2.bmp"),
    ],
)
def test_datasets_are_refused(tmp_path, file):
    path = tmp_path / "photos" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="^--workdir: .*photos is a dataset .it holds .*; give a folder of its own"):
        recognition.refuse_dataset(tmp_path / "photos")


@pytest.mark.parametrize(
    "files",
    [
        (),
        ("notes.txt", "slurm-1.out"),
        ("log", "pid", "code"),
        ("pictures/reconstruction_4.png",),  # what an earlier run left
        ("config.json", "pictures/1.png", "report.png"),
        ("mae/config.json", "mae/pictures/1.png"),
        ("photos/cat/1.jpg",),  # a folder that holds a dataset
    ],
)
def test_other_folders_may_become_a_run(tmp_path, files):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    recognition.refuse_dataset(tmp_path)
    recognition.refuse_dataset(tmp_path / "new")


@pytest.mark.parametrize(
    "verb, config", [("train", "configs/mae/digits.py"), ("pipeline", "configs/pipelines/demo.py")]
)
def test_train_and_pipeline_write_nothing_into_a_dataset(tmp_path, capsys, verb, config):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.png").write_bytes(b"")
    assert main([verb, f"--config={ROOT / config}", f"--workdir={tmp_path}"]) == 2
    assert "is a dataset (it holds cat/1.png)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cat"]
