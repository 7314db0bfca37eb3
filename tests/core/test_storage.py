"""The door to the files of a run: whole or not at all, valid JSON, one line for what cannot be read or written."""

import json
import multiprocessing
import os

import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.stages.mae import MaeStage
from tests.conftest import ROOT, TINY_MAE, arguments


def strict(text: str):
    """JSON as its standard has it, which knows no NaN and no Infinity."""

    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
    value = {"a": float("nan"), "b": [1.5, np.float32("inf"), {"c": -np.inf}], "d": np.int64(3), "e": (np.float64(2),)}
    storage.write_json(tmp_path / "x.json", value)
    assert strict((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.5, None, {"c": None}], "d": 3, "e": [2.0]}
    assert storage.read_json(tmp_path / "x.json")["a"] is None


class Nothing:
    """An evaluator that finds nothing to measure."""

    name = "nothing"

    def run(self, params, mesh):
        return {"test/nothing": float("nan"), "test/accuracy": np.float32("nan")}


def test_metrics_without_a_value_are_null_in_every_file_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(MaeStage, "evaluators", lambda self: [Nothing()])
    stage = dict(name="m", config=str(ROOT / "configs/mae/digits.py"), report=dict(init="MAE", task="finetune"))
    (tmp_path / "recipe.py").write_text(f"def get_config():\n  return dict(title='', data='', stages=[{stage!r}])\n")
    folder = tmp_path / "run"
    overrides = [argument.replace("--config.", "--config.m.") for argument in arguments(TINY_MAE)]
    command = ["pipeline", f"--config={tmp_path / 'recipe.py'}", f"--workdir={folder}", "--workers=1", *overrides]
    assert main(command) == 0
    assert "step 12: test/nothing, test/accuracy: not a finite number" in capsys.readouterr().err
    assert main(["evaluate", f"--workdir={folder / 'm'}"]) == 0
    said = capsys.readouterr()
    assert strict(said.out) == {"step": 12, "test/nothing": None, "test/accuracy": None}
    assert "test/nothing, test/accuracy: not a finite number" in said.err
    assert strict((folder / "m/result.json").read_text())["metrics"]["test/accuracy"] is None
    assert strict((folder / "report.json").read_text()) == []
    for path in folder.rglob("*.json"):
        strict(path.read_text())
    rows = [strict(line) for line in (folder / "m/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test/nothing"] is None and rows[-2]["train/loss"] > 0


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path):
    storage.write_whole(tmp_path / "x", "before")
    (tmp_path / "x.tmp").mkdir()  # where the new one would be written
    with pytest.raises(UserError, match="^--out: cannot write .*x: is a directory"):
        storage.write_whole(tmp_path / "x", "after", "--out")
    assert (tmp_path / "x").read_text() == "before"


def test_damaged_json_is_one_line(tmp_path):
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(UserError, match="x.json: is damaged"):
        storage.read_json(tmp_path / "x.json")


def _create(path, mark, start, answers):
    start.wait()
    answers.put(storage.create(path, mark, mark))


def test_of_many_that_create_a_file_one_succeeds(tmp_path):
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_create, args=(tmp_path / "x", str(i), start, answers), daemon=True) for i in range(4)
    ]
    for process in processes:
        process.start()
    assert sorted(answers.get(timeout=60) for _ in processes) == [False, False, False, True]
    for process in processes:
        process.join()
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_text() in "0123"


def test_create_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert storage.create(tmp_path / "x", "one", "a") and not storage.create(tmp_path / "x", "two", "b")
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "one"


def test_names_files_and_sizes(tmp_path):
    for name in ("b/c/2", "b/1", "a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"123")
    assert storage.names(tmp_path) == ["a", "b"] and storage.names(tmp_path / "none") == []
    assert storage.files(tmp_path) == ["a", "b/1", "b/c/2"]
    assert storage.size(tmp_path / "a") == 3


def test_folders_made_and_removed_again(tmp_path):
    made = storage.make_folder(tmp_path / "a/b/c")
    assert [path.name for path in made] == ["a", "b", "c"] and storage.make_folder(tmp_path / "a/b/c") == []
    (tmp_path / "a/kept").write_text("")
    storage.remove_empty(made)
    assert storage.files(tmp_path) == ["a/kept"] and not (tmp_path / "a/b").exists()


@pytest.mark.parametrize("folder", [False, True])
def test_check_writable_leaves_nothing_behind(tmp_path, folder):
    (tmp_path / "file").write_text("kept")
    storage.check_writable(tmp_path / "new/deep/place", "--x", folder=folder)
    for bad in (tmp_path / "file/place", "/proc/nowhere/place", tmp_path / "file" if folder else tmp_path):
        with pytest.raises(UserError, match="^--x: .*(cannot write|is a )"):
            storage.check_writable(bad, "--x", folder=folder)
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "kept"


MAE = [f"--config={ROOT / 'configs/mae/digits.py'}", *arguments(TINY_MAE)]
BAD = ("{file}/x", "/proc/nowhere/x")  # below a file, and where nobody may write


@pytest.mark.parametrize("place", BAD)
@pytest.mark.parametrize(
    ("argv", "flag", "suffix"),
    [
        (["train", *MAE], "--workdir", ""),
        (["pipeline", "--config={recipe}"], "--workdir", ""),
        (["plan", *MAE, "--topology=cpu:8"], "--json", ".json"),
        (["plan", *MAE, "--topology=v5e:2x2", "--search"], "--json", ".json"),
        (["plan", *MAE, "--topology=v5e:2x2", "--search"], "--search-file", ".jsonl"),
        (["bench", *MAE, "--steps=1"], "--json", ".json"),
        (["embed", "--workdir={run}", "--images={file}"], "--out", ".npz"),
        (["convert", "--from={file}"], "--to", ""),
        (["convert", "--from={run}", "--to-format=mae"], "--to", ".pth"),
        (["data", "build", "--name=photos", "--from={file}"], "--data_dir", ""),
        (["data", "prepare", "--name=digits_hashtags"], "--data_dir", ""),
    ],
)
def test_output_places_are_checked_first(argv, flag, suffix, place, mae_run, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "recipe.py").write_text(
        f"def get_config():\n  stage = dict(name='m', config={str(ROOT / 'configs/mae/digits.py')!r})\n"
        "  return dict(title='', data='', stages=[stage])\n"
    )

    def work(*_, **__):
        raise AssertionError("work began before the place was checked")

    monkeypatch.setattr("mae_pp_jax.workers.compilation.answer", work)
    monkeypatch.setattr("mae_pp_jax.core.program.make", work)
    names = dict(file=tmp_path / "file", run=mae_run, recipe=tmp_path / "recipe.py")
    assert main([part.format(**names) for part in (*argv, f"{flag}={place}{suffix}")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1, said.err
    assert said.err.startswith(f"error: {flag}: cannot write ")
    assert sorted(os.listdir(tmp_path)) == ["file", "recipe.py"]


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """A user without a cache, and with a temporary folder of its own."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(storage.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    storage._temporary_cache.cache_clear()
    yield tmp_path
    storage._temporary_cache.cache_clear()


@pytest.mark.parametrize("home", [None, "/proc/nowhere", "/dev/null"])
def test_without_a_home_that_can_be_written_the_cache_is_a_temporary_folder(no_cache, monkeypatch, home, caplog):
    monkeypatch.setenv("HOME", home) if home else monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path.replace("~", home) if home else path)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    caplog.set_level("WARNING", "mae_pp_jax")
    found = storage.user_cache()
    assert found.parent == no_cache / "tmp" and os.stat(found).st_mode & 0o777 == 0o700
    assert storage.user_cache() == found
    assert storage.names(no_cache) == ["tmp"]
    storage.ensure_home()
    if home is None:
        assert os.environ["HOME"] == str(found)
    else:
        assert os.environ["HOME"] == home and os.environ["TFDS_DATA_DIR"].startswith(str(found))


def test_a_temporary_cache_of_somebody_else_is_not_used(no_cache, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    shared = no_cache / "tmp" / f"mae_pp_jax_{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    assert storage.user_cache() != shared


def test_what_exists_is_no_pattern(tmp_path):
    for name in ("photos [2019]/a.png", "photos [2019]/b.png", "photos 2/c.png", "what?*.png", "x/y/z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = {
        pattern: [os.path.relpath(name, tmp_path) for name in storage.matching(f"{tmp_path}/{pattern}")]
        for pattern in ("photos [2019]/*.png", "what?*.png", "photos [0-9]/*", "x/**/*.png", "none/*")
    }
    assert found == {
        "photos [2019]/*.png": ["photos [2019]/a.png", "photos [2019]/b.png"],
        "what?*.png": ["what?*.png"],
        "photos [0-9]/*": ["photos 2/c.png"],
        "x/**/*.png": ["x/y/z.png"],
        "none/*": [],
    }


def test_file_names_of_other_bytes_than_utf8_are_kept_in_json_and_logs(tmp_path):
    name = os.fsdecode(b"/photos/caf\xe9")
    storage.write_json(tmp_path / "x.json", {"name": name})
    assert storage.read_json(tmp_path / "x.json") == {"name": name}
    with storage.appending(tmp_path / "log.txt") as file:
        file.write(f"{name} ☕\n")
    assert (tmp_path / "log.txt").read_text("utf-8") == "/photos/caf\\udce9 ☕\n"
