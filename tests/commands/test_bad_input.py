"""Wrong input ends with one line that says what is wrong and how to fix it, exit code 2, and leaves nothing behind."""

import os
import pathlib
import shutil

import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands.train import train
from tests.commands.conftest import photos
from tests.conftest import ROOT, TINY, TINY_MAE, arguments, command
from tests.faults.conftest import files

MAE, WSP, LOW = (f"configs/{stage}/digits.py" for stage in ("mae", "wsp", "low_shot"))


@pytest.fixture
def refused(capsys, monkeypatch):
    """Runs a command line that must be refused and returns its one line."""
    monkeypatch.chdir(ROOT)

    def run(*argv: str) -> str:
        capsys.readouterr()
        assert main(list(argv)) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
        return printed.err

    return run


@pytest.fixture
def untrained(refused, tmp_path):
    """As `refused`, for the training of a new run: its folder must not come to be."""

    def run(config: str, overrides: dict[str, str]) -> str:
        base = {MAE: TINY_MAE, LOW: {**TINY, "global_batch": "40"}}.get(config, TINY)
        line = refused("train", f"--config={config}", f"--workdir={tmp_path}/run", *arguments({**base, **overrides}))
        assert not (tmp_path / "run").exists()
        return line

    return run


@pytest.fixture(scope="module")
def wsp_run(tmp_path_factory):
    """The folder of a finished tiny WSP run."""
    folder = tmp_path_factory.mktemp("runs") / "wsp"
    train(str(ROOT / WSP), folder, {**TINY, "train_for": "1 steps"})
    return folder


@pytest.mark.parametrize(
    ("config", "overrides", "words"),
    [
        (MAE, {"modle.size": "Ti/4"}, ["config.modle.size", "did you mean", "config.model.size"]),
        (MAE, {"seeed": "1"}, ["config.seeed", "unknown key", "seed"]),
        (WSP, {"mae.decoder_width": "16"}, ["config.mae.decoder_width", "unknown key"]),
        (MAE, {"model": "Ti/4"}, ["config.model", "group of keys", "size"]),
        (MAE, {"global_batch": "many"}, ["config.global_batch", "a whole number", "'many'"]),
        (MAE, {"optim.lr": "fast"}, ["config.optim.lr", "a number", "'fast'"]),
        (MAE, {"tensorboard": "perhaps"}, ["config.tensorboard", "true or false"]),
        (MAE, {"data.mean": "0.5,grey,0.5"}, ["config.data.mean", "a number", "'grey'"]),
        (MAE, {"data.crop": "centre"}, ["config.data.crop", "shift, none"]),
        (MAE, {"seed": "-1"}, ["config.seed", "at least 0"]),
        (MAE, {"train_for": "soon"}, ["config.train_for", "'soon'", "30 epochs"]),
        (MAE, {"train_for": "0 steps"}, ["config.train_for", "0 steps of 32 images over 1437 records", "'1 steps'"]),
        (MAE, {"train_for": "0 epochs"}, ["config.train_for", "'0 epochs' comes to 0 steps"]),
        (MAE, {"log_every": "0 steps"}, ["config.log_every", "'0 steps' comes to 0 steps", "'1 steps'"]),
        (MAE, {"checkpoint.every": "0%"}, ["config.checkpoint.every", "'0%' comes to 0 steps"]),
        (MAE, {"model.size": "Tiny/4"}, ["config.model.size", "did you mean 'Ti/4'"]),
        (MAE, {"data.name": "digits_hashtag"}, ["data.name", "did you mean digits_hashtags"]),
        (MAE, {"data.train_split": "training"}, ["'training'", "train (1,437)", "test (360)"]),
        (MAE, {"evals.test.split": "validation"}, ["'validation'", "train (1,437)", "test (360)"]),
        (MAE, {"data.name": "/nowhere/pictures"}, ["data.name", "no folder /nowhere/pictures"]),
        (MAE, {"data.image_size": "10"}, ["image_size", "10", "4"]),
        (MAE, {"global_batch": "12"}, ["config.global_batch", "12", "8 devices", "a multiple of 8"]),
        (MAE, {"mesh.fsdp": "3"}, ["config.mesh", "does not cover 8 device(s)"]),
        (MAE, {"init_from.run": "/nowhere/run"}, ["config.init_from", "/nowhere/run", "no checkpoint"]),
        (LOW, {"splits_from": "/nowhere", "small_classes": "all"}, ["config.small_classes", "no effect"]),
        (WSP, {"declared.hashtags": "7"}, ["config.declared.hashtags", "7", "set it to"]),
    ],
)  # fmt: skip
def test_train_names_the_key_and_how_to_fix_it(untrained, config, overrides, words):
    line = untrained(config, overrides)
    for word in words:
        assert word in line


def test_folders_without_images(untrained, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    assert f"{pictures} has no class folders" in untrained(MAE, {"data.name": str(pictures)})
    (pictures / "cat").mkdir()
    assert f"{pictures / 'cat'} has no image" in untrained(MAE, {"data.name": str(pictures)})


def test_classes_with_fewer_images_than_shots(untrained, tmp_path):
    data = photos(tmp_path / "photos", {"ant": "ant", "bee": "bee"})
    for number in (1, 2, 3):
        (data / "train" / "bee" / f"{number}.png").unlink()
    line = untrained(LOW, {"data.name": str(data), "data.cache": "none", "shots": "6"})
    assert (
        "config.shots: 6 images per class are wanted, and 1 of 2 classes have fewer, the smallest is bee with 5" in line
    )
    assert "set --config.shots=5, or --config.small_classes=all" in line


def test_weights_that_do_not_fit(untrained, mae_run, wsp_run):
    line = untrained(WSP, {"init_from.run": str(mae_run), "model.width": "32"})
    assert "config.model.width: width 32, mlp 128, but" in line and "width 16, mlp 64" in line
    line = untrained(WSP, {"init_from.run": str(mae_run), "init_from.step": "5"})
    assert "no checkpoint 5; it has 8, 12" in line
    line = untrained(MAE, {"init_from.run": str(wsp_run)})
    assert f"{wsp_run} is a run of stage 'wsp'; this stage starts from mae" in line


def test_work_folders_that_cannot_be_used(refused, mae_run, tmp_path):
    mae = ["train", f"--config={MAE}", *arguments(TINY_MAE)]
    before = files(mae_run)
    line = refused(*mae, f"--workdir={mae_run}", "--config.seed=1", "--config.optim.lr=0.5")
    assert "seed: 0 → 1" in line and "optim.lr: 0.0015 → 0.5" in line and "global_batch" not in line
    assert files(mae_run) == before
    (tmp_path / "file").write_text("kept")
    assert "is a file" in refused(*mae, f"--workdir={tmp_path}/file")
    assert "cannot write" in refused(*mae, f"--workdir={tmp_path}/file/run")
    assert (tmp_path / "file").read_text() == "kept"
    run = pathlib.Path(shutil.copytree(mae_run, tmp_path / "run"))
    (run / "config.json").write_text('{"stage": "m')
    assert f"{run / 'config.json'}: is damaged" in refused(*mae, f"--workdir={run}")
    (run / "config.json").unlink()
    (run / "result.json").unlink()
    assert "without a config.json" in refused(*mae, f"--workdir={run}")


def test_a_work_folder_that_is_an_address(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a folder `gs:` would come to be
    (tmp_path / "pipeline.py").write_text("def get_config():\n  return dict(title='', data='', stages=[])\n")
    mae = ("train", f"--config={ROOT / MAE}", *arguments(TINY_MAE))
    for verb in (mae, ("pipeline", "--config=pipeline.py")):
        assert "gs://bucket/run is no folder of this machine" in refused(*verb, "--workdir=gs://bucket/run")
    assert not pathlib.Path("gs:").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_work_folder_without_permission(refused, tmp_path):
    tmp_path.chmod(0o500)
    line = refused("train", f"--config={MAE}", *arguments(TINY_MAE), f"--workdir={tmp_path}/run")
    assert "permission denied" in line and str(tmp_path) in line


def test_config_files(refused, tmp_path):
    def config(text):
        path = tmp_path / "recipe.py"
        path.write_text("import ml_collections\n\ndef get_config(epochs=1):\n" + text)
        return f"--config={path}"

    work = f"--workdir={tmp_path}/run"
    assert "did you mean configs/mae/digits.py" in refused("train", "--config=configs/mae/digit.py", work)
    assert "takes no argument 'epoch'; did you mean 'epochs'" in refused("train", f"--config={MAE}:epoch=3", work)
    assert "argument epochs" in refused("train", f"--config={MAE}:epochs=few", work)
    assert "SyntaxError" in refused("train", config("  return (\n"), work)
    assert "must return a ConfigDict" in refused("train", config("  return None\n"), work)
    line = refused("train", config("  return ml_collections.ConfigDict(dict(stage='mea'))\n"), work)
    assert "config.stage" in line and "'mea'" in line and "mae, wsp" in line
    line = refused("train", config("  return dict(stage='mae', optim=dict(lrr=1.0))\n"), work)
    assert "config.optim.lrr" in line and "did you mean 'lr'" in line
    assert not (tmp_path / "run").exists()


def test_pipelines(refused, tmp_path):
    def pipeline(*stages, extra=()):
        path = tmp_path / "pipeline.py"
        path.write_text(
            "import ml_collections\n\ndef get_config():\n"
            f"  return ml_collections.ConfigDict(dict(title='t', data='d', stages={list(stages)!r}))\n"
        )
        return refused("pipeline", f"--config={path}", f"--workdir={tmp_path}/run", *extra)

    mae = dict(name="mae", config=str(ROOT / MAE))
    line = pipeline(mae, dict(name="wsp", config=str(ROOT / WSP), init_from="mea"))
    assert "config.stages" in line and "wsp starts from 'mea'" in line
    assert "the name mae is used twice" in pipeline(mae, mae)
    assert "unknown key 'initfrom'" in pipeline(dict(mae, initfrom="x"))
    assert "no stages" in pipeline()
    assert "no stage 'wps'" in pipeline(mae, extra=["--config.wps.seed=1"])
    assert "config.optim.lrr" in pipeline(dict(mae, overrides={"optim.lrr": 1.0}))
    assert "config.seed" in pipeline(mae, extra=["--config.mae.seed=one"])
    assert not (tmp_path / "run").exists()


def test_evaluate(refused, mae_run, tmp_path):
    assert "is not a run (no config.json)" in refused("evaluate", f"--workdir={tmp_path}")
    line = refused("evaluate", f"--workdir={mae_run}", "--evaluators=test,tset")
    assert "tset is not one of" in line and "test, reconstruction" in line
    shutil.copy(mae_run / "config.json", tmp_path)
    line = refused("evaluate", f"--workdir={tmp_path}")
    assert line.startswith("error: --workdir: ") and "no checkpoint" in line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["VERB", "--help"]),
        (["trian"], ["'trian'", "train", "--help"]),
        (["train"], ["--config", "mae_pp_jax train --help"]),
        (["train", f"--config={MAE}"], ["--workdir"]),
        (["train", f"--config={MAE}", "--workdri=x"], ["--workdri=x", "--config.KEY=VALUE"]),
        (["evaluate", "--workdir=x", "--step=3"], ["--step=3", "--config.KEY=VALUE"]),
        (["data", "prepare"], ["--name"]),
        (["report", "--workdir=/nowhere"], ["/nowhere"]),
    ],
)
def test_command_lines(refused, argv, words):
    line = refused(*argv)
    for word in words:
        assert word in line


def test_in_a_process_of_its_own(tmp_path):
    done = command("train", f"--config={MAE}", f"--workdir={tmp_path}/run", "--config.data.name=no_such_dataset")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()
