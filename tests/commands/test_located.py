"""Released names and files of weights in place of runs: fetched and converted once, for every verb that reads a run."""

import csv
import json
import os
import pathlib
import shutil
import threading

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import convert, embed, pipeline, runs
from mae_pp_jax.commands.train import train
from mae_pp_jax.core import checkpoint, storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import class_names
from mae_pp_jax.interop import layout, matching, released, tables
from mae_pp_jax.interop.files import WeightFile
from mae_pp_jax.interop.tensors import Tensor
from mae_pp_jax.models import vit
from tests.commands.conftest import COLOURS, encoder_file, photos
from tests.commands.test_runs import SHORT, recipe
from tests.conftest import ROOT, arguments
from tests.stages.conftest import params_of

NAME = "maws:vit_b16"
CLASSES = ["emu", "cow", "ant", "dog", "bee"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and a working directory of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MAE_PP_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "runs"


@pytest.fixture
def weights(tmp_path):
    """A file of an encoder, whose settings beside it say its heads."""
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    return encoder_file(folder)


@pytest.fixture
def release(weights, monkeypatch):
    """A released name that stands for that file."""
    small = released.Release(weights.as_uri(), "CC0", 0.0, "none", "none", "Ti/4", 8)
    own = dict(size="Ti/4", width=16, depth=2, heads=2, mlp=64, cls_token=True, norm_eps=1e-6)
    monkeypatch.setattr(released.Release, "config", lambda self: dict(model=own, data=dict(image_size=8)))
    monkeypatch.setitem(released.RELEASES, NAME, small)
    return NAME


@pytest.fixture
def classifier(tmp_path):
    """The folder of a published classifier of five animals."""
    hub = pathlib.Path(shutil.copytree(ROOT / "tests/parity/stored/timm_token", tmp_path / "animals"))
    settings = {"num_attention_heads": 3, "id2label": dict(enumerate(CLASSES))}
    (hub / "config.json").write_text(json.dumps(settings))
    return hub


def test_a_name_is_converted_once_and_said_once(release, weights, cache, caplog, monkeypatch):
    with caplog.at_level("INFO", "mae_pp_jax"):
        run = runs.locate(release, "--workdir")
    assert run.parent == storage.Path(cache) and [path.name for path in cache.iterdir()] == [run.name]
    for said in (f"{release}: {weights.as_uri()}, licence CC0", "converting it once", "is a run of stage encoder with"):
        assert caplog.text.count(said) == 1
    (lineage,) = storage.read_json(run / "result.json")["lineage"]
    assert (lineage["name"], lineage["licence"]) == (release, "CC0")
    caplog.clear()
    monkeypatch.setattr(convert, "make_run", None)
    monkeypatch.setattr(convert, "fetch", None)
    assert runs.locate(release, "--workdir") == run and not caplog.text
    assert runs.locate(str(run), "--workdir") == run  # a folder is taken as it is
    assert runs.results(release, run) == storage.Path("results/maws_vit_b16") and runs.results(run, run) == run


def test_releases_finetuned_on_imagenet_know_its_classes(tmp_path, monkeypatch, capsys):
    """By their name or that of their file; what the file says of its classes wins."""
    hub = tmp_path / "hub"
    hub.mkdir()
    content = load_file(ROOT / "tests/parity/stored/timm_token/model.safetensors")
    head = np.random.default_rng(0).normal(size=(1000, content["head.weight"].shape[1])).astype(np.float32)
    save_file({**content, "head.weight": head, "head.bias": np.zeros(1000, np.float32)}, hub / "own_in1k.safetensors")
    (hub / "config.json").write_text(json.dumps({"num_attention_heads": 3}))
    source = hub / "own_in1k.safetensors"
    convert.import_file(str(source), str(tmp_path / "unknown"))
    assert "classes: 1,000, whose names the file does not say" in capsys.readouterr().out
    release = released.Release(source.as_uri(), "CC0", 0.0, "none", "none", "Ti/16")
    monkeypatch.setitem(released.RELEASES, "maws:own_ft_in1k", release)
    for number, name in enumerate(("maws:own_ft_in1k", str(source))):
        convert.import_file(name, str(tmp_path / f"known{number}"))
        assert "classes by its release, of ImageNet-1k: n01440764, n01443537" in capsys.readouterr().out
        identity = checkpoint.meta(storage.path(tmp_path / f"known{number}"), 0)["identity"]
        assert identity == {"label": list(class_names.imagenet())}
    data = photos(tmp_path / "data", {"ant": "ant"})
    argv = ["predict", f"--workdir={tmp_path / 'known0'}", f"--images={data}/test", "--top=1", "--batch=8"]
    assert main(argv) == 0
    answers = {line[1] for line in list(csv.reader(capsys.readouterr().out.splitlines()))[1:]}
    assert answers <= {f"{known} {words}" for known, words in class_names.imagenet().items()} and answers
    names = {str(i): f"no. {i}" for i in range(1000)}
    (hub / "config.json").write_text(json.dumps({"num_attention_heads": 3, "id2label": names}))
    convert.import_file(str(source), str(tmp_path / "says"))
    assert "classes by config.json: no. 0, no. 1" in capsys.readouterr().out


def test_a_file_that_has_changed_is_another_run(weights, cache):
    first = runs.locate(str(weights), "--workdir")
    assert runs.locate(weights.as_uri(), "--workdir") == first == runs.locate(os.path.relpath(weights), "--workdir")
    os.utime(weights, (1, 1))
    second = runs.locate(str(weights), "--workdir")
    assert second != first and second.name.startswith("vit-") and len(list(cache.iterdir())) == 2
    assert runs.locate(str(weights.parent), "--workdir").name.startswith("hub-")


def test_a_conversion_that_fails_leaves_nothing_and_of_two_one_converts(weights, cache, monkeypatch):
    make, made = convert.make_run, []

    def fail(folder, *args):
        make(folder, *args)
        storage.move(folder, folder.with_name(f".{folder.name}.converting"))  # as it is before it has its name
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert, "make_run", fail)
        runs.locate(str(weights), "--workdir")
    assert all(path.name.startswith(".") for path in cache.iterdir())
    monkeypatch.setattr(convert, "make_run", lambda *args: made.append(args) or make(*args))
    found = []
    both = [threading.Thread(target=lambda: found.append(runs.locate(str(weights), "--workdir"))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(made) == 1 and found[0] == found[1] and [path.name for path in cache.iterdir()] == [found[0].name]


def test_a_training_starts_from_a_name_and_keeps_it(release, cache, tmp_path, caplog):
    overrides = {**SHORT, "init_from.run": release}
    result = train(recipe("classify"), tmp_path / "run", overrides)
    config = storage.read_json(tmp_path / "run" / "config.json")
    assert config["init_from"]["run"] == release and config["model"]["width"] == 16
    assert [record.get("name") for record in result["lineage"]] == [release, None]
    run = runs.locate(release, "--workdir")
    shutil.move(run, tmp_path / "moved")
    assert train(recipe("classify"), tmp_path / "run", overrides) == result  # finished: nothing is fetched
    assert not list(cache.iterdir())
    with caplog.at_level("INFO", "mae_pp_jax"):
        train(recipe("classify"), tmp_path / "run", {**overrides, "init_from.run": str(tmp_path / "moved")})
    assert f'the same under other names: init_from.run: "{release}" → "{tmp_path}/moved"' in caplog.text
    source, target = params_of(tmp_path / "moved"), params_of(tmp_path / "run")
    assert not np.array_equal(source["encoder/cls_token"], target["encoder/cls_token"])
    np.testing.assert_allclose(source["encoder/cls_token"], target["encoder/cls_token"], atol=1e-2)


def test_a_pipeline_starts_from_a_name(release, tmp_path):
    (tmp_path / "pipeline.py").write_text(
        "import ml_collections\n\ndef get_config():\n"
        f"  stages = [dict(name='linear', config={recipe('linear')!r}, overrides={{'init_from.run': {release!r}}})]\n"
        "  return ml_collections.ConfigDict(dict(title='t', data='d', stages=stages))\n"
    )
    keys = {f"linear.{key}": value for key, value in SHORT.items()}
    pipeline.pipeline(str(tmp_path / "pipeline.py"), tmp_path / "runs", keys, workers=1)
    assert storage.read_json(tmp_path / "runs" / "linear" / "result.json")["lineage"][0]["name"] == release


def test_weights_are_evaluated_and_leave_the_cache_alone(classifier, cache, tmp_path, capsys):
    data = photos(tmp_path / "photos", {name: name for name in COLOURS})
    keys = {"data.name": str(data), "evals.test.split": "test", "global_batch": "8"}
    argv = ["evaluate", f"--workdir={classifier}", *arguments(keys)]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    (file,) = pathlib.Path("results/animals/evaluations").iterdir()
    assert json.loads(file.read_text())["metrics"]["test/accuracy"] == found["test/accuracy"]
    assert not list(cache.rglob("evaluations"))
    assert main([*argv, f"--out={tmp_path / 'elsewhere'}"]) == 0
    assert [path.name for path in (tmp_path / "elsewhere/evaluations").iterdir()] == [file.name]
    capsys.readouterr()
    assert main(["predict", f"--workdir={classifier}", f"--images={data}/test/ant/1.png", "--top=1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split(",")[1] in CLASSES


def test_weights_are_embedded(release, tmp_path):
    data = photos(tmp_path / "photos", {"ant": "ant"})
    found, _ = embed.embed(release, str(data), str(tmp_path / "f.npz"))
    again, _ = embed.embed(str(runs.locate(release, "")), str(data), str(tmp_path / "f.npz"))
    assert found.shape == (16, 16)
    np.testing.assert_array_equal(found, again)


def test_what_cannot_fit_is_refused_before_it_is_fetched(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(convert, "fetch", None)
    argv = [
        "train",
        f"--config={recipe('classify')}",
        f"--workdir={tmp_path}/run",
        "--config.init_from.run=maws:vit_h14",
    ]
    assert main([*argv, "--config.model.size=B/16"]) == 2
    said = capsys.readouterr().err
    assert "the weights of maws:vit_h14 (config.init_from.run) are for patch 14, width 1280, depth 32" in said
    assert main([*argv, "--config.data.image_size=224", "--keys"]) == 0
    assert '--config.model.size="H/14"\n' in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["evaluate", "predict", "embed", "train"])
@pytest.mark.parametrize(
    "text, words",
    [
        ("maws:vit_b17", "'maws:vit_b17' is not a released model; did you mean maws:vit_b16?"),
        ("notes.txt", "notes.txt: is no PyTorch, safetensors or .npz file"),
        ("alone.safetensors", "more has to be said of alone.safetensors (--heads: "),
        ("nowhere", "nowhere"),
        ("gs://bucket/run", "gs://bucket/run is no folder of this machine"),
    ],
)
def test_what_is_no_run_is_one_line(weights, cache, tmp_path, capsys, verb, text, words):
    pathlib.Path("notes.txt").write_text("mine")
    shutil.copy(weights, "alone.safetensors")
    (tmp_path / "photos").mkdir()
    photos(tmp_path / "photos", {"ant": "ant"})
    argv = {
        "evaluate": [f"--workdir={text}"],
        "predict": [f"--workdir={text}", f"--images={tmp_path}/photos", f"--out={tmp_path}/f.csv"],
        "embed": [f"--workdir={text}", f"--images={tmp_path}/photos", f"--out={tmp_path}/f.npz"],
        "train": [f"--config={recipe('classify')}", f"--workdir={tmp_path}/run", f"--config.init_from.run={text}"],
    }
    assert main([verb, *argv[verb]]) == 2
    said = capsys.readouterr().err.splitlines()
    key = "config.init_from" if verb == "train" else "--workdir"
    assert said[-1].startswith(f"error: {key}") and words in said[-1]
    assert not [path for path in cache.rglob("*") if not path.name.startswith(".")]
    assert sorted(os.listdir()) == ["alone.safetensors", "notes.txt"]
    assert sorted(os.listdir(tmp_path))[-2:] == ["hub", "photos"]


@pytest.mark.parametrize(
    "name, format, groups, sizes",
    [
        ("mae_in1k:vit_b16", "mae", ("norm", "cls_token"), dict(D=768, M=3072, T=197, p=16)),
        ("maws:vit_h14", "maws", ("norm", "cls_token"), dict(D=1280, M=5120, T=257, p=14)),
        ("maws:vit_2b14_ft_in1k", "maws", ("norm", "cls_token", "head"), dict(D=2560, M=10240, T=1370, p=14, C=1000)),
        ("swag:vit_l16_ft_in1k", "swag", ("head",), dict(D=1024, M=4096, T=1025, p=16, C=1000)),
    ],
)
def test_a_release_says_beforehand_what_its_file_will(name, format, groups, sizes):
    known = released.find(name).config()
    table = next(f for f in tables.FORMATS if f.name == format)
    depths = {"encoder/blocks": vit.SIZES[known["model"]["size"].partition("/")[0]][1], "decoder/blocks": 1}
    sizes = {**sizes, "N": sizes["T"] - 1, "h": sizes["D"], "d": 512, "m": 2048, "t": 197, "X": 48, "F": 10, "H": 16}
    rows = matching.expected(table, frozenset(groups), depths)
    shapes = {key: matching.shape_of(row, sizes) for key, row, _ in rows if "*" not in key}
    tensors = {key: Tensor(shape, np.dtype(np.float32), None) for key, shape in shapes.items()}
    match = matching.match(storage.Path("x"), tensors, format, wrapped=False, encoder_only=False)
    file = WeightFile(storage.Path("x"), (), "torch", tensors, "", False, False, {}, {})
    found = layout.config(file, match)
    assert known["model"].items() <= found["model"].items()
    image = dict(
        image_size=found["data"]["image_size"], mean=tuple(found["data"]["mean"]), std=tuple(found["data"]["std"])
    )
    assert image == known["data"]


def test_names_of_another_family_are_paths():
    with pytest.raises(UserError, match="holds no checkpoint"):
        runs.resolved(dict(stage="linear", init_from=dict(run="other:vit_b16")))


def test_a_suite_judges_a_name_on_grey_pictures_and_leaves_the_cache_as_it_is(release, cache, tmp_path, capsys):
    data = tmp_path / "grey"
    for shade, name in enumerate(("dark", "light")):
        (data / name).mkdir(parents=True)
        for i in range(10):
            cv2.imwrite(str(data / name / f"{i}.png"), np.full((8, 8), 100 * shade + 5 * i, np.uint8))
    run = runs.locate(release, "--workdir")
    before = sorted(path.relative_to(cache) for path in cache.rglob("*"))
    arguments = ["--evals=knn,low_shot", "--config.low_shot.shots=1", "--config.knn.neighbours=2"]
    assert main(["evaluate", "--suite=image", f"--workdir={release}", f"--data={data}", *arguments]) == 0
    table = capsys.readouterr().out
    assert "2-NN" in table and "1-shot" in table
    assert sorted(path.relative_to(cache) for path in cache.rglob("*")) == before
    kept = pathlib.Path(runs.results(release, run))
    assert (kept / "suites" / "image.json").is_file() and len(list((kept / "features").glob("*.npy"))) == 2
