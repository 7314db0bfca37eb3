"""`evaluate` on other data than a run was trained on: classes go by name, and none is measured as another one."""

import json
import shutil

import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import convert
from mae_pp_jax.commands.evaluate import evaluate
from mae_pp_jax.core import checkpoint, storage
from mae_pp_jax.core.errors import UserError
from tests.commands.conftest import COLOURS, photos
from tests.conftest import ROOT


def test_classes_go_by_name(trained, tmp_path, caplog):
    run, wanted = trained
    data = photos(tmp_path / "data", {"bee": "bee", "cow": "cow"})
    for key in ("data.name", "evals.test.data"):
        caplog.clear()
        with caplog.at_level("INFO", "mae_pp_jax"):
            found = evaluate(run, None, {key: str(data)})
        assert found == pytest.approx(wanted, rel=1e-5)
        assert f"evals.test: 1 classes of the checkpoint are not in {data}: ant" in caplog.text


@pytest.mark.parametrize(
    "names, message",
    [
        ({"bee": "bee", "cow": "cow", "dog": "ant"}, "has images of classes that the checkpoint does not have: dog; "),
        (
            {"a": "ant", "b": "bee", "c": "cow"},
            r"has none of the classes of the checkpoint \(a, b, c; there ant, bee, cow\)",
        ),
    ],
)
def test_other_classes_are_refused(trained, tmp_path, names, message):
    data = photos(tmp_path / "data", names)
    with pytest.raises(UserError, match=rf"^evals\.test\.data: {data} {message}") as error:
        evaluate(trained[0], None, {"data.name": str(data)})
    assert "\n" not in str(error.value)


def test_other_names_are_matched_by_a_file(trained, tmp_path):
    data = photos(tmp_path / "data", {"1": "cow", "2": "bee", "3": "ant"})
    (tmp_path / "classes.json").write_text(json.dumps({"1": "cow", "2": "bee"}))
    found = evaluate(trained[0], None, {"data.name": str(data), "evals.test.classes": str(tmp_path / "classes.json")})
    assert found == pytest.approx(trained[1], rel=1e-5)


def test_in_both_precisions(trained, tmp_path):
    data = photos(tmp_path / "data", {"bee": "bee", "cow": "cow"})
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 3e-2)):
        found = evaluate(trained[0], None, {"data.name": str(data), "model.dtype": dtype})
        assert found["test/loss"] == pytest.approx(trained[1]["test/loss"], rel=tolerance)
        assert (found["test/loss"] == pytest.approx(trained[1]["test/loss"], rel=1e-6)) == (dtype == "float32")


def test_label_sets_and_a_choice_among_the_classes_of_a_set(trained, tmp_path, capsys):
    """Where every class is right there is no loss; among two of three classes it is smaller than among all."""
    data = photos(tmp_path / "data", {"bee": "bee", "cow": "cow"})
    files = [f"{i}.png" for i in range(8)]
    (tmp_path / "labels.json").write_text(json.dumps({name: ["ant", "bee", "cow"] for name in files}))
    arguments = [f"--workdir={trained[0]}", f"--config.evals.any.data={data}", "--evaluators=any"]
    labels = f"--config.evals.any.labels={tmp_path / 'labels.json'}"
    assert main(["evaluate", *arguments, labels]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["any/accuracy"] == 1 and found["any/loss"] == pytest.approx(0, abs=1e-6)
    assert main(["evaluate", *arguments, "--config.evals.any.logits=set"]) == 0
    assert json.loads(capsys.readouterr().out)["any/loss"] < trained[1]["test/loss"]
    (tmp_path / "labels.json").write_text(json.dumps({name: ["ant"] for name in files[1:]}))
    assert main(["evaluate", *arguments, labels]) == 2
    assert "2 images are not in it, such as 0.png: no entry" in capsys.readouterr().err


def test_a_checkpoint_without_names_says_what_it_takes_its_outputs_for(trained, tmp_path, caplog):
    """Runs of earlier versions do not name their classes."""
    run = shutil.copytree(trained[0], tmp_path / "run")
    step = run / "checkpoints" / str(checkpoint.find(storage.path(run)))
    meta = storage.read_json(step / "meta" / "metadata")
    assert meta.pop("identity")["label"] == ["ant", "bee", "cow"]
    storage.write_json(step / "meta" / "metadata", meta)
    checkpoint.write_digest(step)
    same = photos(tmp_path / "same", {name: name for name in COLOURS})
    evaluate(run, None, {"data.name": str(same)})
    assert "does not name" not in caplog.text  # the fingerprint is that of the training data
    other = photos(tmp_path / "other", {"a": "ant", "b": "bee", "c": "cow"})
    evaluate(run, None, {"data.name": str(other)})
    assert f"does not name its classes: taken as the 3 of {other} in that order, a … c" in caplog.text
    with pytest.raises(UserError, match="head/"):
        evaluate(run, None, {"data.name": str(photos(tmp_path / "two", {"a": "ant", "b": "bee"}))})


def test_a_suite_measures_a_classifier_on_its_sets_and_others(trained, tmp_path, caplog):
    """Sets of its own whose data is not there are left out, and said."""
    data = photos(tmp_path / "data", {"bee": "bee", "cow": "cow"})
    arguments = [f"--workdir={trained[0]}", "--evals=robustness", f"--out={tmp_path}", "--data=digits_hashtags"]
    with caplog.at_level("WARNING", "mae_pp_jax"):
        assert main(["evaluate", "--suite=image", *arguments, f"--config.robustness.photos.data={data}"]) == 0
    (result,) = json.loads((tmp_path / "image.json").read_text())["results"]
    ((task, values),) = [(column["task"], column["values"]) for column in result["columns"]]
    assert task == "photos" and values["accuracy"] == [pytest.approx(trained[1]["test/accuracy"])]
    assert "robustness: test of" in caplog.text and "left out: data.name: no folder" in caplog.text


PUBLISHED = ("emu", "cow", "ant", "dog", "bee")  # in the order of the head


@pytest.fixture
def hub(tmp_path):
    """Folder of a published classifier whose config.json has these names."""
    folder = tmp_path / "hub"
    folder.mkdir()
    shutil.copy(ROOT / "tests/parity/stored/timm_token/model.safetensors", folder)
    names = {str(i): name for i, name in enumerate(PUBLISHED)}
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 3, "id2label": names}))
    return folder


def test_an_imported_classifier_knows_the_names_that_its_settings_have(hub, tmp_path, capsys, caplog):
    convert.import_file(str(hub), str(tmp_path / "named"))
    assert "classes by config.json: emu, cow, ant, dog, bee" in capsys.readouterr().out
    (hub / "config.json").unlink()
    convert.import_file(str(hub), str(tmp_path / "numbered"), heads=3)
    assert "classes: 5, whose names the file does not say" in capsys.readouterr().out
    shown = dict(zip(PUBLISHED, [*COLOURS, "ant", "bee"]))
    by_name = photos(tmp_path / "by_name", shown)
    by_order = photos(tmp_path / "by_order", {str(i): shown[name] for i, name in enumerate(PUBLISHED)})
    found = {}
    for run, data in (("named", by_name), ("numbered", by_order)):
        keys = {"data.name": str(data), "evals.test.split": "test", "global_batch": "8"}
        found[run] = evaluate(tmp_path / run, None, keys)
    assert found["named"] == pytest.approx(found["numbered"], rel=1e-5)
    assert caplog.text.count("does not name its classes") == 1


def test_names_for_another_number_of_classes_are_refused(hub, tmp_path, capsys):
    (hub / "config.json").write_text(json.dumps({"num_attention_heads": 3, "id2label": {"0": "cat", "1": "dog"}}))
    assert main(["convert", f"--from={hub}", f"--to={tmp_path / 'run'}"]) == 2
    assert "its config.json names 2 classes and its head has 5" in capsys.readouterr().err


def test_names_go_out_and_come_back(trained, tmp_path, capsys):
    convert.export_run(str(trained[0]), str(tmp_path / "hub"), "huggingface")
    assert storage.read_json(tmp_path / "hub" / "config.json")["id2label"] == {"0": "ant", "1": "bee", "2": "cow"}
    convert.import_file(str(tmp_path / "hub"), str(tmp_path / "again"))
    step = checkpoint.meta(storage.path(tmp_path / "again"), 0)
    assert step["identity"] == {"label": ["ant", "bee", "cow"]}
    convert.export_run(str(trained[0]), str(tmp_path / "a.safetensors"), "timm")
    assert "names of the classes left: timm has no place for it" in capsys.readouterr().out
