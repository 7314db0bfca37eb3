"""Evaluation sets: other datasets, parts of their classes, and classes under other names."""

import json

import cv2
import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import class_names, evals, fields, images, source


def _folder(root, classes, number=5):
    """Class folders, the i-th picture of class c filled with 20 c + i."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(number):
            cv2.imwrite(str(root / name / f"{i}.bmp"), np.full((4, 4, 3), (20 * c + i) % 256, np.uint8))
    return str(root)


@pytest.fixture
def data(tmp_path):
    return source.DataConfig(name=_folder(tmp_path / "train", ("cat", "dog", "emu")), image_size=4)


@pytest.fixture
def opened(data, tmp_path):
    """Opens an evaluation set of class folders with a file of classes: (class of the training data, first pixel)s."""
    train = source.open_source(data, "train")

    def open_set(folders, content, split="all"):
        file = tmp_path / "classes.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        other = source.DataConfig(name=data.name, train_split="all", eval_fraction=0.0)
        config = evals.EvalConfig(data=_folder(tmp_path / "other", folders), split=split, classes=str(file))
        held_out = evals.open_eval_source(other, config, evals.Known(evals.names_of(train)), "other")
        labels, names = fields.labels(held_out).tolist(), fields.names(train, "label")
        pixels = [images.pixels(held_out[i]["image"])[0, 0, 0] // 20 for i in range(len(held_out))]
        assert labels == [held_out[i]["label"] for i in range(len(held_out))]
        return sorted({(names[label], int(pixel)) for label, pixel in zip(labels, pixels)}), held_out

    return open_set


def test_without_a_set_of_its_own_the_held_out_part_is_evaluated(data):
    train = source.open_source(data, "train")
    held_out = evals.open_eval_source(data, evals.EvalConfig(), evals.Known(evals.names_of(train)))
    assert len(train) + len(held_out) == 15 and held_out.fingerprint == source.open_source(data, "test").fingerprint


def test_a_list_of_classes_leaves_out_the_others(opened):
    found, held_out = opened(("dog", "emu", "fox"), ["emu", "dog"])
    assert found == [("dog", 0), ("emu", 1)] and len(held_out) >= 8


def test_classes_may_have_other_names(opened):
    """As ImageNetV2 numbers its folders, and ObjectNet has several classes for one."""
    found, _ = opened(("0", "1", "10", "2"), {"0": "emu", "10": "cat", "2": "cat"})
    assert found == [("cat", 2), ("cat", 3), ("emu", 0)]


def test_fingerprints_tell_maps_apart(opened, tmp_path):
    _, one = opened(("0", "1"), {"0": "emu", "1": "cat"})
    (tmp_path / "other").rename(tmp_path / "before")
    _, two = opened(("0", "1"), {"0": "cat", "1": "emu"})
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["fix"], "'fix' is no class of this set; did you mean 'fox'"),
        ({"fox": "dig"}, "'dig' is no class of the training data; did you mean 'dog'"),
        (["fox"], "'fox' is no class of the training data"),
        ([], "must hold a list of names"),
        ([1], "must hold a list of names"),
        ([["dog"]], "must hold a list of names"),
        (3, "must hold a list of names"),
        ({"fox": 3}, "must hold a list of names"),
        ("{", "is no JSON"),
    ],
)
def test_files_of_classes_that_do_not_fit_are_refused_in_one_line(opened, content, message):
    with pytest.raises(UserError, match=rf"^evals\.other\.classes: .*{message}") as error:
        opened(("dog", "fox"), content)
    assert "\n" not in str(error.value)


def test_a_missing_file_of_classes_is_refused(data):
    train = source.open_source(data, "train")
    with pytest.raises(UserError, match=r"^evals\.test\.classes: cannot read /none.json: No such file"):
        evals.open_eval_source(data, evals.EvalConfig(classes="/none.json"), evals.Known(evals.names_of(train)))


def _opened_as(data, tmp_path, folders, known, **config):
    """Labels and names of an evaluation set of these class folders for a model of these classes."""
    other = source.DataConfig(name=data.name, train_split="all", eval_fraction=0.0)
    config = evals.EvalConfig(data=_folder(tmp_path / "other", folders), split="all", **config)
    return evals.open_eval_source(
        other, config, evals.Known({"label": known, "hashtags": ()}, "the checkpoint"), "other"
    )


def test_names_that_several_classes_have_are_refused_only_where_they_are_met(data, tmp_path):
    """ImageNet has two classes `crane` and two `maillot` in words."""
    crane = ("crane", "dog", "crane", "emu")
    held_out = _opened_as(data, tmp_path / "1", ("dog", "emu"), crane)
    assert set(fields.labels(held_out)) == {1, 3}
    with pytest.raises(UserError, match="'crane' is the name of 2 classes of the checkpoint"):
        _opened_as(data, tmp_path / "2", ("crane", "dog"), crane)


def test_the_order_of_imagenet_is_an_assumption_that_is_told(data, tmp_path, monkeypatch, caplog):
    ids = tuple(class_names.imagenet())
    words = ("tench, Tinca tinca", *(f"animal {i}" for i in range(998)), "toilet tissue, toilet paper")
    held_out = _opened_as(data, tmp_path, ids, words)
    assert "of ImageNet in its usual order" in caplog.text and fields.names(held_out, "label") == ids
    assert fields.labels(held_out)[-1] == 999
    some = _opened_as(data, tmp_path / "2", (ids[999], ids[7], ids[500]), words)  # as ImageNet-A has 200 of them
    assert set(fields.labels(some)) == {7, 500, 999}
    with pytest.raises(UserError, match="none of the classes"):
        _opened_as(data, tmp_path / "3", ("n00000001", "n00000002"), words)


def test_names_of_what_is_not_measured_need_not_fit(data, tmp_path):
    known = evals.Known({"label": ("x", "y"), "hashtags": ()}, needed=())
    assert len(evals.open_eval_source(data, evals.EvalConfig(), known)) == 3
