"""`predict` through the command line: answers by name, files that cannot be read, and going on after a kill."""

import csv
import json
import shutil

import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import answer_file, convert
from mae_pp_jax.core import storage
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import images as images_lib
from mae_pp_jax.data import picture_files
from tests.commands.conftest import COLOURS, expected, photos
from tests.conftest import ROOT
from tests.parity import checks


@pytest.fixture
def folder(tmp_path):
    """A folder of 12 pictures in folders, two files that are no pictures inside, and one by its name."""
    data = photos(tmp_path / "photos", {name: name for name in COLOURS}, size=11)
    for path in sorted(data.rglob("*.png"))[::4]:
        path.unlink()
    (data / "train" / "bee" / "6.png").write_bytes(b"no picture")
    (data / "train" / "cow" / "7.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (data / "notes.txt").write_text("mine")
    return data


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_folder_is_answered_by_name_and_what_cannot_be_read_is_named(trained, folder, tmp_path, capsys):
    out = tmp_path / "new" / "answers.csv"
    argv = ["predict", f"--workdir={trained[0]}", f"--images={folder}", f"--out={out}", "--batch=8", "--top=2"]
    assert main(argv) == 0
    said = capsys.readouterr()
    good = [path for path in sorted(folder.rglob("*.png"), key=str) if path.read_bytes() != b"no picture"]
    assert said.out == f"{out}: answers for {len(good)} pictures\n"
    assert (
        f"2 of {len(good) + 2} files could not be read: {folder}/train/bee/6.png (" in said.err and "7.jpg" in said.err
    )
    assert [path.name for path in out.parent.iterdir()] == ["answers.csv"]
    head, *found = rows(out)
    assert head == ["file", "class", "probability"] and [row[0] for row in found[::2]] == list(map(str, good))
    wanted = expected(trained[0], good)
    for file, name, share in found:
        assert float(share) == pytest.approx(wanted[file][name], rel=1e-4)
    for first, second in zip(found[::2], found[1::2]):
        assert first[0] == second[0] and sorted(wanted[first[0]].values())[0] < float(second[2]) <= float(first[2])


def test_other_forms_and_printed(trained, folder, tmp_path, capsys):
    some = [f"{folder}/test/ant/*.png", f"{folder}/test/bee/1.png"]
    argv = ["predict", f"--workdir={trained[0]}", "--top=9", "--images", *some]
    assert main(argv) == 0
    head, *printed = csv.reader(capsys.readouterr().out.splitlines())
    assert head == ["file", "class", "probability"] and {row[0] for row in printed[-3:]} == {some[1]}
    for suffix in (".jsonl", ".json"):
        assert main([*argv, f"--out={tmp_path / ('a' + suffix)}"]) == 0
    whole = json.loads((tmp_path / "a.json").read_text())
    assert whole == [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    told = [[own["file"], answer["class"], answer["probability"]] for own in whole for answer in own["answers"]]
    assert told == [[file, name, float(share)] for file, name, share in printed] and len(told) == 3 * len(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.jsonl", "photos"]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_one_that_was_stopped_goes_on(trained, folder, tmp_path, monkeypatch, capsys, suffix):
    out, whole = tmp_path / f"answers{suffix}", tmp_path / f"whole{suffix}"
    argv = ["predict", f"--workdir={trained[0]}", f"--images={folder}", "--batch=8"]
    assert main([*argv, f"--out={whole}"]) == 0
    write, written = answer_file.AnswerFile.write, []

    def stop(self, answered):
        if written:
            raise KeyboardInterrupt
        written.extend(answered)
        write(self, written)

    with monkeypatch.context() as patch:
        patch.setattr(answer_file.AnswerFile, "write", stop)
        assert main([*argv, f"--out={out}"]) == 130
    capsys.readouterr()
    assert main([*argv, f"--out={out}", "--top=1"]) == 2
    said = capsys.readouterr().err
    assert "holds unfinished answers by other settings (top was 5, is 1); " in said and said.count("\n") == 1
    read = []
    monkeypatch.setattr(storage, "read_bytes", lambda path, own=storage.read_bytes: read.append(str(path)) or own(path))
    assert main([*argv, f"--out={out}"]) == 0
    assert out.read_bytes() == whole.read_bytes()
    again = {name for name, _ in written} & set(read)
    assert again <= {written[-1][0]}  # of the last one the file might lack rows
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, "photos", whole.name]


@pytest.mark.parametrize("suffix", answer_file.SUFFIXES)
def test_a_file_cut_at_any_byte_is_completed(tmp_path, suffix):
    answers = {
        name: [("a, b", 0.5), ('"c"\n', 0.25)] for name in ("1.png", 'two "2",\n.png', "3\udcff.png", "vier ä.png")
    }
    settings = dict(top=2, overrides={"a": "b"})

    def write(target, names, finish):
        file = answer_file.AnswerFile(target, ("class", "probability"), settings)
        file.write((name, answers[name]) for name in names if name not in file)
        file.finish() if finish else file.close()
        return file

    whole = storage.path(tmp_path / f"whole{suffix}")
    write(whole, answers, finish=True)
    assert not list(tmp_path.glob("whole?*.*.*"))
    grown = storage.path(tmp_path / f"grown{suffix}")
    write(grown, answers, finish=False)
    content = next(path for path in (tmp_path / f"grown{suffix}.rows", grown) if path.exists()).read_bytes()
    for at in range(0, len(content), 1 if suffix == ".csv" else 7):
        target = storage.path(tmp_path / f"cut{suffix}")
        rows = target.with_name(f"cut{suffix}.rows") if suffix == ".json" else target
        rows.write_bytes(content[:at])
        shutil.copy(f"{grown}.unfinished", f"{target}.unfinished")
        write(target, answers, finish=True)
        assert target.read_bytes() == whole.read_bytes(), at
        target.unlink()
    if suffix == ".json":
        assert [own["file"] for own in json.loads(whole.read_text())][2] == "3\\xff.png"


def test_names_of_an_imported_classifier_or_numbers(tmp_path, folder, capsys):
    hub = shutil.copytree(ROOT / "tests/parity/stored/timm_token", tmp_path / "hub")
    names = ["emu", "cow", "ant", "dog", "bee"]
    for run, told in (("numbers", list("01234")), ("named", names)):
        if run == "named":
            settings = {"num_attention_heads": 3, "id2label": dict(enumerate(names))}
            (hub / "config.json").write_text(json.dumps(settings))
        convert.import_file(str(hub / "model.safetensors"), str(tmp_path / run), heads=3)
        capsys.readouterr()
        argv = ["predict", f"--workdir={tmp_path / run}", f"--images={folder}/test/ant/1.png", "--batch=8"]
        assert main([*argv, f"--out={tmp_path / run}.csv"]) == 0
        assert ("does not name its 5 classes: numbers stand for them" in capsys.readouterr().err) == (run == "numbers")
        found = {name: float(share) for _, name, share in rows(tmp_path / f"{run}.csv")[1:]}
        assert sorted(found) == sorted(told) and sum(found.values()) == pytest.approx(1, abs=1e-4)
        stage, params = checks.load(tmp_path / run)
        image = images_lib.center_crop(storage.read_bytes(f"{folder}/test/ant/1.png"), stage.config.data.size)
        logits = np.asarray(stage.logits(params, {"image": image[None]}))[0]
        assert max(found, key=found.get) == told[int(np.argmax(logits))]


def test_the_preprocessing_is_that_of_the_checkpoint(trained, folder, tmp_path, capsys):
    argv = ["predict", f"--workdir={trained[0]}", f"--images={folder}/test/ant/1.png", "--top=1"]
    found = {}
    for keys in (
        (),
        ("--config.evals.test.crop=squeeze",),
        ("--config.evals.test.share=0.3",),
        ("--config.data.std=1,1,1",),
    ):
        assert main([*argv, *keys]) == 0
        found[keys] = capsys.readouterr().out
    assert found[()] == found["--config.evals.test.crop=squeeze",]  # of a square picture
    assert len(set(found.values())) == 3


@pytest.mark.parametrize(
    "change, words",
    [
        (["--images=nothing/*"], "no file matches 'nothing/*'"),
        (["--images=EMPTY"], "no picture in the folder"),
        (["--images=BROKEN"], "none of the 1 files could be read"),
        (["--out=answers.txt"], "must end in .csv, .jsonl, .json"),
        (["--workdir=nowhere"], "nowhere is not a run"),
        (["--top=0"], "--top: must be at least 1"),
        (["--batch=0"], "--batch: must be at least 1"),
        (["--labels=cat"], "--labels=cat: unknown argument"),
        (["--workdir=MAE"], "a run of stage 'mae' knows no classes; train one that does from it"),
    ],
)
def test_wrong_arguments_are_one_line(trained, mae_run, tmp_path, capsys, change, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"nothing")
    photos(tmp_path / "photos", {"ant": "ant"})
    base = {"--workdir": trained[0], "--images": tmp_path / "photos", "--out": tmp_path / "f.csv", "--batch": 8}
    base |= dict(argument.split("=") for argument in change)
    stand = {"EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken.png", "MAE": mae_run}
    assert main(["predict", *(f"{name}={stand.get(value, value)}" for name, value in base.items())]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "empty", "photos"]


def test_folders_patterns_and_files_in_order(tmp_path):
    names = ["b/2.JPG", "b/1.png", "a.webp", "b/c/3.gif", "b/notes.txt", "._a.webp", "b/.hidden/4.png", "noname"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = picture_files.PictureFiles([f"{tmp_path}/", f"{tmp_path}/b/*", f"{tmp_path}/noname"])
    wanted = ["a.webp", "b/1.png", "b/2.JPG", "b/c/3.gif", "b/1.png", "b/2.JPG", "b/notes.txt", "noname"]
    assert list(found) == [f"{tmp_path}/{name}" for name in wanted] and found.count() == len(wanted)
    (tmp_path / "b/2.JPG").rename(tmp_path / "b/c/3.gif")
    (tmp_path / "b/c/3.gif").rename(tmp_path / "b/c/3.gif.part")
    with pytest.raises(UserError, match="--images: no picture in the folder .*b/c or below it"):
        picture_files.PictureFiles([str(tmp_path / "a.webp"), f"{tmp_path}/b/c"])


def test_old_answers_are_replaced(trained, folder, tmp_path):
    out = tmp_path / "answers.csv"
    out.write_text("file,class,probability\nx.png,ant,1\n")
    assert main(["predict", f"--workdir={trained[0]}", f"--images={folder}/test/ant", f"--out={out}"]) == 0
    assert len(rows(out)) == 1 + 3 * 6 and "x.png" not in out.read_text()
