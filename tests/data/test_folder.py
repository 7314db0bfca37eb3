"""Folders of images as a dataset, and everything that can be wrong with them."""

import dataclasses
import os
import unicodedata

import cv2
import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import decode, fields, folder, images, source
from mae_pp_jax.data.building import inputs
from tests.data.pictures import class_folders


def _fill(folder, classes=("cat", "dog"), number=10, extension=".png"):
    class_folders(folder, classes, number, extension)


def _open(folder, split, **options):
    return source.open_source(source.DataConfig(name=str(folder), **options), split)


def _refused(folder, split="train", **options):
    with pytest.raises(UserError) as error:
        _open(folder, split, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_without_splits_a_fifth_of_each_class_is_held_out(tmp_path):
    _fill(tmp_path)
    train, test = _open(tmp_path, "train"), _open(tmp_path, "test")
    assert (len(train), len(test)) == (16, 4)
    assert fields.names(train, "label") == fields.names(test, "label") == ("cat", "dog")
    np.testing.assert_array_equal(np.bincount(fields.labels(train)), [8, 8])
    np.testing.assert_array_equal(np.bincount(fields.labels(test)), [2, 2])
    names = [s.describe(i) for s in (train, test) for i in range(len(s))]
    assert sorted(names) == sorted(str(p) for p in tmp_path.glob("*/*"))
    assert len(_open(tmp_path, "test", eval_fraction=0.5)) == 10
    assert {_open(tmp_path, name).fingerprint for name in ("test", "val", "validation")} == {test.fingerprint}
    assert len(_open(tmp_path, "all", train_split="all")) == 16
    whole = _open(tmp_path, "all")  # as a dataset to evaluate on
    assert sorted(names) == sorted(whole.describe(i) for i in range(20)) and len(whole) == 20
    record = train[9]
    assert record["label"] == fields.labels(train)[9] == 1
    assert images.pixels(record["image"]).shape == (6, 5, 3)


def test_split_and_fingerprint_do_not_depend_on_the_place(tmp_path):
    _fill(tmp_path / "one")
    _fill(tmp_path / "two")
    one, two = (_open(tmp_path / name, "test") for name in ("one", "two"))
    names = [[os.path.relpath(s.describe(i), tmp_path / n) for i in range(4)] for s, n in ((one, "one"), (two, "two"))]
    assert names[0] == names[1]
    assert one.fingerprint == two.fingerprint != _open(tmp_path / "one", "train").fingerprint
    (tmp_path / "two" / "cat" / "new.png").write_bytes(b"more")
    assert _open(tmp_path / "two", "train").fingerprint != _open(tmp_path / "one", "train").fingerprint


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_own_splits(tmp_path, name):
    _fill(tmp_path / "train", number=4, extension=".JPG")
    _fill(tmp_path / name, number=3, extension=".webp")
    assert (len(_open(tmp_path, "train")), len(_open(tmp_path, "test"))) == (8, 3 * 2)


@pytest.mark.parametrize(
    "train, test", [("Train", "TEST"), ("Training", "Testing"), ("train", "valid"), ("TRAIN", "Dev")]
)
def test_splits_may_have_other_words_for_names(tmp_path, train, test):
    _fill(tmp_path / train, number=4)
    _fill(tmp_path / test, number=3)
    assert (len(_open(tmp_path, "train")), len(_open(tmp_path, "test"))) == (8, 6)
    assert fields.names(_open(tmp_path, "train"), "label") == ("cat", "dog")
    reader = inputs.open_input(str(tmp_path), sidecar_file="", columns="", input_data_dir="")
    found = {(i.split, i.label) for part in reader.parts() for i in reader.items(part)}
    assert found == {(s, c) for s in ("train", "validation" if "v" in test else "test") for c in ("cat", "dog")}


def test_a_class_may_have_a_word_for_a_split_and_two_words_for_one_split_are_refused(tmp_path):
    _fill(tmp_path / "sport", classes=("Training/2023", "cooking"))
    assert fields.names(_open(tmp_path / "sport", "train"), "label") == ("Training", "cooking")
    for split in ("train", "Train", "test"):
        _fill(tmp_path / "twice" / split)
    assert "the folders Train and train mean the same split" in _refused(tmp_path / "twice")


def test_links_are_followed_and_what_is_not_read_is_told_once(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(folder.log, "warning", lambda what, *values: told.append(what % values))
    root, big = tmp_path / "root", tmp_path / "big"
    _fill(root, number=4)
    _fill(big, classes=("fox",), number=2)
    (root / "fox").symlink_to(big / "fox")
    (root / "cat" / "out.png").symlink_to(big / "fox" / "00.png")
    (root / "cat" / "again").symlink_to(root)
    (root / "cat" / "gone.png").symlink_to(root / "nothing")
    (root / "dog" / "2023").mkdir()
    cv2.imwrite(str(root / "dog" / "2023" / "x.png"), np.zeros((6, 5, 3), np.uint8))
    (root / "dog" / "2023" / "x.png").rename(root / "dog" / "2023" / "x.JFIF")
    (root / "stray.png").write_bytes(b"x")
    (root / "__MACOSX" / "cat").mkdir(parents=True)
    for name in ("__MACOSX/cat/00.png", "cat/._00.png", "cat/notes.txt"):
        (root / name).write_bytes(b"x")
    train, test = _open(root, "train"), _open(root, "test")
    assert fields.names(train, "label") == ("cat", "dog", "fox")
    names = {os.path.relpath(s.describe(i), root) for s in (train, test) for i in range(len(s))}
    assert len(names) == 5 + 5 + 2 and {"cat/out.png", "dog/2023/x.JFIF", "fox/01.png"} <= names
    (line,) = told
    assert "hidden file 2, in no class folder 1, link in a loop 1, link to nothing 1, no picture by its name 1" in line


@pytest.mark.parametrize("place, splits", [("train", True), ("train/cat", True), ("train", False)])
def test_a_link_from_a_split_to_what_holds_it_is_a_loop(tmp_path, place, splits):
    for split in ("train", "test") if splits else ("",):
        _fill(tmp_path / split, classes=("cat", "dog") if splits else ("cat", "train"), number=3)
    (tmp_path / place / "again").symlink_to(tmp_path)
    assert [len(_open(tmp_path, "train")), len(_open(tmp_path, "test"))] == ([6, 6] if splits else [4, 2])


@pytest.mark.parametrize("classes", [("bus", "car", "train"), ("test", "train", "val"), ("train", "tram")])
def test_classes_may_have_the_names_of_splits(tmp_path, classes):
    _fill(tmp_path, classes=classes, number=5)
    assert fields.names(_open(tmp_path, "train"), "label") == classes
    assert len(_open(tmp_path, "test")) == len(classes)


def test_a_folder_that_may_be_a_class_or_a_split_is_refused(tmp_path):
    _fill(tmp_path, classes=("bus", "car", "train/2023"))
    assert "if it is a class, move its pictures into it" in _refused(tmp_path)


def test_names_in_any_bytes_and_unicode_form(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    _fill(tmp_path / "train", classes=(nfc, "tea"), number=2)
    _fill(tmp_path / "test", classes=(nfd, "tea"), number=2)
    for split in ("train", "test"):
        assert fields.names(_open(tmp_path, split), "label") == (nfc, "tea")
    old = tmp_path / "old"
    _fill(old, number=3)
    os.rename(os.fsencode(old / "cat"), os.fsencode(old) + b"/caf\xe9")
    train = _open(old, "train")
    assert fields.names(train, "label") == ("caf\\xe9", "dog") and len(train) == 4
    assert images.pixels(train[0]["image"]).shape == (6, 5, 3) and "caf\\xe9" in train.describe(0)


def test_fingerprints_of_plain_folders_stay(tmp_path):
    """As they were before other files were counted; runs of then go on."""
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(5):
            (tmp_path / label / f"{i}.png").write_bytes(bytes(10 + i))
    assert (
        _open(tmp_path, "train").fingerprint == "eef78d42ff76226c"
        and _open(tmp_path, "test").fingerprint == "bbf12c34c7e634a3"
    )


def test_missing_folder_offers_the_nearest(tmp_path):
    (tmp_path / "photos").mkdir()
    assert _refused(tmp_path / "photo").endswith(f"did you mean {tmp_path / 'photos'}?")
    assert f"no folder {tmp_path / 'x' / 'y'}" in _refused(tmp_path / "x" / "y")


def test_bad_folders_are_refused_in_one_line(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no class folders" in _refused(empty)
    flat = tmp_path / "flat"
    _fill(flat, classes=("",))
    assert "has no class folders" in _refused(flat)
    hollow = tmp_path / "hollow"
    _fill(hollow)
    (hollow / "emu").mkdir()
    assert f"{hollow / 'emu'} has no image" in _refused(hollow)
    single = tmp_path / "single"
    _fill(single, number=1)
    assert "two are needed" in _refused(single)
    whole = tmp_path / "whole"
    _fill(whole)
    assert "its splits are train and test, not 'tset'" in _refused(whole, "tset")


def test_bad_splits_are_refused_in_one_line(tmp_path):
    _fill(tmp_path / "train")
    assert "has no split 'test'; it has train" in _refused(tmp_path, "test")
    _fill(tmp_path / "val", classes=("cat", "emu"))
    assert "must hold the same classes; only one has dog, emu" in _refused(tmp_path, "test")


def test_file_that_cannot_be_read_is_named(tmp_path):
    _fill(tmp_path, number=2)
    for path in tmp_path.glob("*/*"):
        path.write_bytes(b"not an image")
    train = _open(tmp_path, "train")
    with pytest.raises(decode.Unreadable, match="begins with b'not an i'"):
        images.pixels(train[0]["image"])
    os.remove(train.describe(1))
    with pytest.raises(UserError, match="cannot read .*No such file"):
        train[1]


def test_folder_with_simulated_hashtags(tmp_path):
    _fill(tmp_path)
    config = source.DataConfig(name=str(tmp_path), hashtags="simulated")
    plain = source.open_source(dataclasses.replace(config, hashtags="field"), "train")
    tagged = source.open_source(config, "train")
    assert fields.names(plain, "hashtags") == () and "hashtags" not in plain[0]
    assert fields.names(tagged, "hashtags")[:2] == ("cat", "dog")
    assert tagged.fingerprint != plain.fingerprint
    names = [{fields.names(tagged, "hashtags")[t] for t in tagged[i]["hashtags"]} for i in range(len(tagged))]
    assert sum("cat" in tags or "dog" in tags for tags in names) > len(names) / 2
