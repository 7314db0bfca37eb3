"""`evaluate --mistakes`: the page of what a classifier gets wrong, the most confident answers first."""

import json
import re

import numpy as np
import pytest

from mae_pp_jax.__main__ import main
from mae_pp_jax.commands import mistakes as mistakes_lib
from mae_pp_jax.commands.evaluate import evaluate
from tests.commands.conftest import expected, photos

FIGURE = re.compile(r"is <b>(.*?)</b><br>([\d.]+)% (.*?)<br>([\d.]+)% (.*?)<br>([\d.]+)% (.*?)<br><small>(.*?)</small>")
BATCH = "16"  # so that the 24 pictures take two batches, and the second one is filled up


@pytest.fixture
def mislabelled(tmp_path):
    """Pictures of which those that are called ant and bee show the other; one of them cannot be read."""
    data = photos(tmp_path / "data", {"ant": "bee", "bee": "ant", "cow": "cow"})
    (data / "test" / "cow" / "0.png").write_bytes(b"no picture")
    return data


def test_the_most_confident_mistakes_first(trained, mislabelled, tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "mistakes.html"
    keys = {"data.name": str(mislabelled), "data.max_unreadable": "0.5", "global_batch": BATCH}
    keys |= {"evals.several.data": str(mislabelled), "evals.several.labels": str(tmp_path / "labels.json")}
    (tmp_path / "labels.json").write_text(json.dumps({f"{i}.png": ["ant", "bee"] for i in range(8)}))
    keys |= {"evals.pair.data": str(mislabelled), "evals.pair.logits": "set"}
    keys["evals.pair.classes"] = str(tmp_path / "classes.json")
    (tmp_path / "classes.json").write_text(json.dumps(["bee", "cow"]))
    metrics = evaluate(trained[0], ["test", "pair"], keys, out=str(tmp_path / "kept"))
    capsys.readouterr()
    argv = ["evaluate", f"--workdir={trained[0]}", *(f"--config.{key}={value}" for key, value in keys.items())]
    assert main([*argv, f"--mistakes={out}"]) == 0
    files = [file for file in sorted((mislabelled / "test").glob("*/*.png")) if file.stat().st_size > 20]
    shares = expected(trained[0], files)
    best = {str(file): max(shares[str(file)], key=shares[str(file)].get) for file in files}
    wrong = {str(file): shares[str(file)][best[str(file)]] for file in files if best[str(file)] != file.parent.name}
    assert len(files) == 23 and 0 < len(wrong) < 23 and len(wrong) == round(23 * (1 - metrics["test/accuracy"]))
    said = capsys.readouterr().out
    assert said == f"{out}: {len(wrong)} of the 23 images of test got a wrong answer, all of them are shown\n"
    page = out.read_text()
    assert f"{len(wrong)} of 23 images" in page
    figures = FIGURE.findall(page)
    assert [figure[-1] for figure in figures] == sorted(wrong, key=wrong.get, reverse=True)
    for truth, *answers, file in figures:
        own = sorted(shares[file].items(), key=lambda item: -item[1])
        assert truth == file.split("/")[-2] and answers[1::2] == [name for name, _ in own]
        np.testing.assert_allclose(list(map(float, answers[::2])), [100 * share for _, share in own], atol=0.1)
    monkeypatch.setattr(mistakes_lib, "SHOWN", 3)
    found = mistakes_lib.mistakes(trained[0], tmp_path / "three.html", "test", keys)
    assert found == dict(set="test", wrong=len(wrong), measured=23, shown=3)
    assert FIGURE.findall((tmp_path / "three.html").read_text()) == figures[:3]
    found = mistakes_lib.mistakes(trained[0], tmp_path / "pair.html", "pair", keys)
    assert found["measured"] == 15 and found["wrong"] == round(15 * (1 - metrics["pair/accuracy"]))
    assert "0.0% ant" in (tmp_path / "pair.html").read_text() or not found["wrong"]


@pytest.mark.parametrize(
    "change, words",
    [
        (["--mistakes=page.png"], "--mistakes: page.png must end in .html"),
        (["--mistakes=/dev/null/page.html"], "--mistakes: cannot write /dev/null/page.html"),
        (["--workdir=MAE"], "a run of stage 'mae' knows no classes"),
        (["--evaluators=other"], "--evaluators: other is not one of this run's: test"),
        (["--evaluators=test,other"], "--evaluators: --mistakes shows one set; name one"),
        (["--config.evals.test.labels=LABELS"], "--evaluators: no set has one right class per image"),
        (["--config.evals.test.labels=LABELS", "--evaluators=test"], "--evaluators: images of test may have several"),
        (["--suite=image"], "--mistakes: a suite has none; leave out --suite"),
        (["--out=there"], "--out: --mistakes writes one file and no metrics; leave one of them out"),
    ],
)
def test_wrong_arguments_are_one_line(trained, mae_run, tmp_path, capsys, monkeypatch, change, words):
    data = photos(tmp_path / "data", {"ant": "ant", "bee": "bee"})
    (tmp_path / "labels.json").write_text(json.dumps({f"{i}.png": ["ant", "bee"] for i in range(8)}))
    monkeypatch.chdir(tmp_path)
    base = {"--workdir": trained[0], "--mistakes": "page.html", "--config.data.name": data}
    base |= dict(argument.split("=") for argument in change)
    stand = {"MAE": mae_run, "LABELS": tmp_path / "labels.json"}
    assert main(["evaluate", *(f"{name}={stand.get(value, value)}" for name, value in base.items())]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said.splitlines()[-1], said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "labels.json"]
