"""Draws as text files: written, read again, and read as they are published."""

import logging

import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import few_shot, fields


class Named:
    """Records with the names of their files, or with their place as `FolderSource` describes it."""

    def __init__(self, names, as_field):
        self.names = names
        self.fields = {"file_name": fields.Text()} if as_field else {}

    def __len__(self):
        return len(self.names)

    def column(self, name):
        return iter(self.names)

    def describe(self, index):
        return f"/data/train/{self.names[index]}"


IMAGENET = Named([f"n0{c}_{i}.JPEG" for c in range(3) for i in range(4)], as_field=True)
FOLDER = Named([f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)], as_field=False)


@pytest.mark.parametrize("source", [IMAGENET, FOLDER])
def test_a_split_is_read_as_it_was_written(tmp_path, source):
    drawn = np.array([4, 0, 5])
    few_shot.write_split(tmp_path / "splits" / "1shot_0.txt", source, drawn)
    text = (tmp_path / "splits" / "1shot_0.txt").read_text()
    assert text.splitlines() == [source.names[i] for i in drawn]
    np.testing.assert_array_equal(few_shot.read_split(tmp_path / "splits" / "1shot_0.txt", source), drawn)


@pytest.mark.parametrize("line", ["n01_2.JPEG", "n01_2", "n01/n01_2.JPEG", "  n01_2.JPEG  "])
def test_published_names_are_matched_by_their_file(tmp_path, line):
    (tmp_path / "5imgs_class.txt").write_text(f"n00_0.JPEG\n\n{line}\n")
    assert few_shot.read_split(tmp_path / "5imgs_class.txt", IMAGENET).tolist() == [0, 6]


@pytest.mark.parametrize(
    "text, source, said",
    [
        ("n00_0.JPEG\nn99_1.JPEG\nn99_2.JPEG\n", IMAGENET, "2 of 3 names are no training image, such as n99_1.JPEG"),
        ("0.png\n", FOLDER, "0.png is the name of 2 images, such as cat/0.png and dog/0.png; write CLASS/FILE"),
        ("n00_0\nn00_0.JPEG\n", IMAGENET, "names an image twice"),
        ("\n", IMAGENET, "names no image"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, text, source, said):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        few_shot.read_split(tmp_path / "a.txt", source)
    with pytest.raises(UserError, match="config.splits_from: there is no file"):
        few_shot.read_split(tmp_path / "b.txt", source)


def test_files_are_found_as_a_run_and_as_msn_lay_them_out(tmp_path):
    (tmp_path / "5imgs_class.txt").touch()
    assert few_shot.split_file(tmp_path, 5, 0, 1).name == "5imgs_class.txt"
    with pytest.raises(UserError, match="has no file for draw 1 of 2, 5shot_0.txt or subsets1/5imgs_class.txt"):
        few_shot.split_file(tmp_path, 5, 0, 2)
    (tmp_path / "subsets2").mkdir()
    (tmp_path / "subsets2" / "5imgs_class.txt").touch()
    assert few_shot.split_file(tmp_path, 5, 1, 3).parent.name == "subsets2"
    (tmp_path / "5shot_1.txt").touch()
    assert few_shot.split_file(tmp_path, 5, 1, 3).name == "5shot_1.txt"


def test_classes_with_fewer_images_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        few_shot.tell_small_classes(np.array([0, 0, 1, 2, 2, 2, -1]), 2, ["cat", "dog", "eel"])
    assert caplog.messages == [
        "config.shots: 1 of 3 classes have fewer than 2 images and give all they have, such as dog with 1"
    ]


def test_the_smallest_class_is_refused_with_both_ways_out():
    labels, names = np.array([0, 0, 0, 1, 2, 2, 0, -1]), ["cat", "dog", "eel"]
    few_shot.check_small_classes(labels, 1, names)
    wanted = (
        "config.shots: 3 images per class are wanted, and 2 of 3 classes have fewer, the smallest is dog with 1; set "
        "--config.shots=1, or --config.small_classes=all, with which such classes give all they have"
    )
    with pytest.raises(UserError) as error:
        few_shot.check_small_classes(labels, 3, names)
    assert str(error.value) == wanted
    with pytest.raises(UserError, match="the smallest is fox with 0; set --config.small_classes=all, with which"):
        few_shot.check_small_classes(labels, 2, [*names, "fox"])


def test_a_class_without_an_image_is_refused():
    labels, names = np.array([0, 0, 1, 2, -1]), ["cat", "dog", "eel"]
    few_shot.check_classes(labels, np.array([1, 2, 3]), names, "a.txt")
    with pytest.raises(UserError, match="a.txt names no image of 2 of 3 classes, such as dog"):
        few_shot.check_classes(labels, np.array([0, 4]), names, "a.txt")


def test_the_rest_holds_nothing_that_was_drawn():
    drawn = np.array([1, 5, 7])
    rest = few_shot.rest(20, drawn, 10, seed=3)
    assert len(np.unique(rest)) == 10 and not set(rest) & set(drawn)
    np.testing.assert_array_equal(rest, few_shot.rest(20, drawn, 10, seed=3))
    assert len(few_shot.rest(20, drawn, 50, seed=0)) == 17
