"""Robustness sets in small: pictures whose colour says how a known classifier of ImageNet's 1,000 classes ranks them.

Every expected value is counted by hand. A picture of value v has logits -|v - class|: the nearest class is the first.
"""

import importlib.util
import json
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core import partition
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import class_names
from mae_pp_jax.evaluation.classify import of_batch
from mae_pp_jax.stages import registry
from tests.conftest import ROOT

IDS = list(class_names.imagenet())


def draw(path, value, frame=0):
    """Writes a picture of a value, 4×4 pixels and a red frame around them; the file tells its kind, not its name."""
    colour = (round(value % 1 * 100), int(value) // 250, int(value) % 250)  # blue, green, red
    image = np.full((4 + 2 * frame, 4 + 2 * frame, 3), (0, 0, 255), np.uint8)
    image[frame : 4 + frame, frame : 4 + frame] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".bmp", image)[1].tobytes())


def classifier(names=IDS, stage="classify", **keys):
    """A stage with a known model whose outputs have these names; `keys` are those of its evaluation set `test`."""
    config = {
        "stage": stage,
        "global_batch": 8,
        "data": dict(name="digits_hashtags", image_size=4, mean=(0, 0, 0), std=(1, 1, 1)),
        "model": dict(size="Ti/4", width=16, depth=1, heads=2),
        "declared": dict(classes=len(names)),
        "evals": dict(test=dict(dict(split="all"), **keys)),
    }
    found = registry.create(registry.resolve(config))
    found.recall({"identity": {"label": list(names)}})

    def apply(params, pixels):
        blue, green, red = (pixels[:, 0, 0, c] * 255 for c in (2, 1, 0))
        return -jnp.abs((red + 250 * green + blue / 100)[:, None] - jnp.arange(len(names)))

    found.model = types.SimpleNamespace(apply=apply)
    return found


def measured(stage) -> dict[str, float]:
    (evaluator,) = stage.evaluators()
    found = evaluator.run({}, partition.make_mesh(stage.config.mesh))
    return {name.removeprefix("test/"): value for name, value in found.items() if name != "test/loss"}


def test_imagenet_v2_numbers_its_folders(tmp_path, caplog):
    """Sorted as text, 10 would come before 2."""
    for folder in ("0", "2", "10", "100", "999"):
        draw(tmp_path / folder / "a.jpeg", float(folder))
    with caplog.at_level("INFO", "mae_pp_jax"):
        found = measured(classifier(data=str(tmp_path), classes="imagenet_v2"))
    assert found == {"accuracy": 1.0, "accuracy_top5": 1.0}
    assert f"evals.test: 995 of 1,000 classes have no image: {IDS[1]}, " in caplog.text


@pytest.fixture
def adversarial(tmp_path):
    """Pictures of four classes of ImageNet-A, which are the 7th, 12th, 14th and 16th of ImageNet."""
    for name, value in ((IDS[11], 9.4), (IDS[6], 9.4), (IDS[13], 13.0), (IDS[15], 3.0)):
        draw(tmp_path / name / "a.jpg", value)
    return str(tmp_path)


@pytest.mark.parametrize(
    "keys, first, five",
    [
        # Of all classes 9.4 is nearest to 9, 10, 8, 11 and 7; 3.0 to 3, 2, 4, 1 and 5.
        (dict(classes="imagenet_a"), 1 / 4, 2 / 4),
        # Of the 200 to 11, 6, 13, 15 and 17; 3.0 to 6, 11, 13, 15 and 17.
        (dict(classes="imagenet_a", logits="set"), 2 / 4, 4 / 4),
        # Of the four that have images likewise.
        (dict(logits="set"), 2 / 4, 4 / 4),
    ],
)
def test_imagenet_a_chooses_among_its_classes(adversarial, keys, first, five):
    stage = classifier(data=adversarial, **keys)
    assert measured(stage) == {"accuracy": first, "accuracy_top5": five}
    among = 1000 if "logits" not in keys else 200 if "classes" in keys else 4
    level = stage.chance()
    assert level["test/loss"] == pytest.approx(np.log(among)) and level["test/accuracy"] == 1 / 4


def test_a_model_that_names_its_classes_in_words_is_measured_on_ids(adversarial):
    words = tuple(class_names.imagenet().values())
    assert measured(classifier(words, data=adversarial, logits="set", classes="imagenet_a"))["accuracy"] == 2 / 4


def test_loss_among_the_classes_of_a_set(tmp_path):
    """Classes 0 and 2 for a picture of 0.5: logits -0.5 and -1.5, so log(1 + 1/e) and 1 more; class 1 is ruled out."""
    for folder in (0, 2):
        draw(tmp_path / IDS[folder] / "a.png", 0.5)
    (evaluator,) = classifier(IDS[:8], data=str(tmp_path), logits="set").evaluators()
    found = evaluator.run({}, partition.make_mesh(classifier().config.mesh))
    assert found["test/loss"] == pytest.approx(np.log(1 + np.exp(-1)) + 0.5, rel=1e-5)


FOLDERS = {"alarm_clock": "Alarm clock", "mug": "Mug", "ruler": "Ruler", "vase": "Vase"}


@pytest.fixture
def objectnet(tmp_path):
    """A folder of four ObjectNet classes with a frame of 2 pixels, and the two files that it comes with."""
    analog, digital = class_names.imagenet()[IDS[409]], class_names.imagenet()[IDS[530]]
    assert (analog, digital) == ("analog clock", "digital clock")
    files = {
        "folder_to_objectnet_label.json": FOLDERS,
        "objectnet_to_imagenet_1k.json": {"Alarm clock": f"{analog}; {digital}", "Mug": "coffee mug", "Vase": IDS[883]},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    pictures = (("alarm_clock", 409), ("alarm_clock", 530), ("alarm_clock", 470), ("mug", 504), ("vase", 884))
    for i, (folder, value) in enumerate((*pictures, ("ruler", 769))):
        draw(tmp_path / "images" / folder / f"{i}.png", value, frame=2)
    classes = ",".join(str(tmp_path / name) for name in files)
    return dict(data=str(tmp_path / "images"), classes=classes, border=2)


def test_the_sets_of_the_recipes(objectnet, tmp_path):
    """All with the transform of the validation set; ObjectNet's files where its archive has them."""
    spec = importlib.util.spec_from_file_location("imagenet", ROOT / "configs/imagenet.py")
    spec.loader.exec_module(recipes := importlib.util.module_from_spec(spec))
    (tmp_path / "mappings").mkdir()
    for file in tmp_path.glob("*.json"):
        file.rename(tmp_path / "mappings" / file.name)
    sets = recipes.robustness(dict(share=0.5, resize="bicubic"), objectnet=str(tmp_path))
    assert sorted(sets) == ["a", "objectnet", "r", "real", "sketch", "v2"]
    assert {(own["share"], own["resize"]) for own in sets.values()} == {(0.5, "bicubic")}
    registry.resolve(dict(stage="classify", data=dict(name="digits_hashtags"), evals=sets))
    assert measured(classifier(**dict(sets["objectnet"], share=1.0)))["accuracy"] == 3 / 5


def test_objectnet_has_several_classes_for_one_and_others_that_do_not_count(objectnet):
    """Right are both clocks and the mug; 470 is no clock; 884 is near the vase, 883; rulers are left out."""
    stage = classifier(**objectnet)
    assert len(stage.eval_source("test")) == 5
    assert measured(stage) == {"accuracy": 3 / 5, "accuracy_top5": 4 / 5}
    # Among 409, 504, 530 and 883 alone: 470 is nearest to 504, and 884 to the vase.
    assert measured(classifier(**objectnet, logits="set")) == {"accuracy": 4 / 5, "accuracy_top5": 1.0}
    assert stage.chance()["test/accuracy"] == 3 / 5  # always a clock
    assert stage.chance()["test/loss"] == pytest.approx(np.log(1000) - 3 / 5 * np.log(2))
    with_frame = classifier(**dict(objectnet, border=0))
    assert measured(with_frame)["accuracy"] < 3 / 5


def test_loss_of_any_right_class(tmp_path):
    """A picture midway between both right classes, 1 and 2 of three: their two equal logits hold all but one share."""
    draw(tmp_path / "images" / "x" / "a.png", 1.5)
    (tmp_path / "map.json").write_text(json.dumps({"x": IDS[1:3]}))
    stage = classifier(IDS[:3], data=str(tmp_path / "images"), classes=str(tmp_path / "map.json"))
    (evaluator,) = stage.evaluators()
    found = evaluator.run({}, partition.make_mesh(stage.config.mesh))
    both = 2 * np.exp(-0.5)
    assert found["test/loss"] == pytest.approx(-np.log(both / (both + np.exp(-1.5))), rel=1e-5)


VALUES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
REAL = [[0], [7, 1], [], [4], [4, 3, 3], [], [999], [0, 12], [8], [11], [10, 9, 8]]  # right: 0, 1, 4, 6 no, 8, 10


@pytest.fixture
def real(tmp_path):
    """Eleven validation images, so that two batches of eight are not full, and their label sets."""
    for number, value in enumerate(VALUES, 1):
        draw(tmp_path / "val" / IDS[value % 3] / f"ILSVRC2012_val_{number:08}.JPEG", value)
    (tmp_path / "real.json").write_text(json.dumps(REAL))
    return dict(data=str(tmp_path / "val"), labels=str(tmp_path / "real.json"))


def test_real_leaves_out_images_without_a_label(real, caplog):
    """Right of the nine that count: 0, 1, {3, 4} for 4, 8 and 10. In the first five also 4 for 3, {0, 12} no, 11 for 9."""
    with caplog.at_level("INFO", "mae_pp_jax"):
        found = measured(classifier(**real))
    assert found == pytest.approx({"accuracy": 5 / 9, "accuracy_top5": 7 / 9})
    assert "2 of 11 images have no class there and are left out" in caplog.text


def test_label_sets_over_several_hosts_and_in_every_order_of_fields(real, tmp_path):
    """Two hosts see each image once; names of files and of classes say the same as numbers."""
    stage, total = classifier(**real), np.zeros(2)
    measure = jax.jit(lambda batch: of_batch(stage.model.apply({}, stage.pixels(batch)), batch)["accuracy"])
    for process in range(2):
        stage.reader = (process, 2)
        for batch in stage.eval_batches("test"):
            total += [float(part) for part in measure(batch)]
    assert total.tolist() == [5, 9]
    named = {f"ILSVRC2012_val_{i:08}.JPEG": [IDS[c] for c in own] for i, own in enumerate(REAL, 1)}
    (tmp_path / "named.json").write_text(json.dumps(named | {"another.JPEG": [IDS[0]]}))
    again = classifier(**dict(real, labels=str(tmp_path / "named.json")))
    assert again.eval_source("test").fingerprint == stage.eval_source("test").fingerprint
    assert again.evaluation_set("test")["records"] == 9


@pytest.mark.parametrize(
    "content, message",
    [
        (REAL[:-1], "has labels of 10 images, and the set has 11"),
        ([*REAL, [1]], "has labels of 12 images, and the set has 11"),
        ([[1000], *REAL[1:]], "1000 is no class; numbers are those of ImageNet, 0 to 999"),
        ([["tnech"], *REAL[1:]], "'tnech' is no class of the checkpoint"),
        ([[[1]], *REAL[1:]], r"\[1\] is no class; give names or numbers"),
        ({"a.JPEG": [0]}, "11 images are not in it, such as ILSVRC2012_val_0000000\\d.JPEG: no entry"),
        ([[]] * 11, "no image of the set has a class that the checkpoint has"),
        ([0] * 11, "must hold a list of lists of classes"),
        ({}, "must hold a list of lists of classes"),
        ("no", "must hold a list of lists of classes"),
    ],
)
def test_label_sets_that_do_not_fit_are_refused_in_one_line(real, tmp_path, content, message):
    (tmp_path / "real.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^evals\.test\.labels: .*real.json.* ?{message}") as error:
        classifier(**real).eval_source("test")
    assert "\n" not in str(error.value)


def test_files_without_numbers_are_not_those_of_a_list(real, tmp_path):
    name = next((tmp_path / "val").glob("*/*01.JPEG"))
    name.rename(name.with_name("fish.JPEG"))
    with pytest.raises(UserError, match="1 images are not in it, such as fish.JPEG: no number from 1 to 11"):
        classifier(**real).eval_source("test")


@pytest.mark.parametrize("name", ["objectnet_to_imagenet_1k.json", "real.json", "imagenet_b"])
def test_an_absent_file_says_where_it_is_published(tmp_path, name):
    draw(tmp_path / "a" / "a.png", 0)
    key = "labels" if name == "real.json" else "classes"
    where = {"real.json": "google-research/reassessed-imagenet", "imagenet_b": "packaged are imagenet_1k, imagenet_a, "}
    with pytest.raises(UserError, match=rf"^evals\.test\.{key}: cannot read {name}: No such file.*") as error:
        classifier(data=str(tmp_path), **{key: name}).eval_source("test")
    assert where.get(name, "objectnet.dev") in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"alarm_clock": "analog clok"}, "'analog clok' is no class of the checkpoint; did you mean 'analog clock'"),
        ({"alarm_clock": "crane"}, "'crane' is the name of 2 classes of the checkpoint: which is meant?"),
        ({"alarm_clock": ["analog clock", 3]}, "'alarm_clock' is not so"),
        ({"alarm_clok": "analog clock"}, "'alarm_clok' is no class of this set; did you mean 'alarm_clock'"),
    ],
)
def test_maps_that_do_not_fit_are_refused_in_one_line(objectnet, tmp_path, content, message):
    (tmp_path / "map.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^evals\.test\.classes: .*map.json.*{message}") as error:
        classifier(**dict(objectnet, classes=str(tmp_path / "map.json"))).eval_source("test")
    assert "\n" not in str(error.value)


def test_a_split_without_an_image_of_the_classes_is_refused(tmp_path):
    digits = "zero one two three four five six seven eight nine".split()
    first = classifier(digits, split="test[:1]")
    (there,) = first.eval_labels()["test"]
    (tmp_path / "map.json").write_text(json.dumps([name for name in digits if name != digits[there]]))
    with pytest.raises(UserError, match=r"^evals\.test\.classes: no image of this set is of a class that"):
        classifier(digits, split="test[:1]", classes=str(tmp_path / "map.json")).eval_source("test")


@pytest.mark.parametrize("key", [dict(labels="real.json"), dict(logits="set")])
def test_stages_that_do_not_classify_refuse_what_is_about_classes(key):
    with pytest.raises(UserError, match=rf"config\.evals\.test\.{min(key)}: stage 'mae' does not classify"):
        classifier(stage="mae", **key)


def test_a_label_beyond_the_classes_is_refused():
    """It would count as an image without a loss."""
    stage = classifier(IDS[:8], split="test")
    with pytest.raises(UserError, match="has label 8, and there are 8 classes"):
        stage.load({"image": np.zeros((4, 4, 3), np.uint8), "label": 8}, np.zeros(stage.draws))


def test_pictures_smaller_than_their_border_are_counted_as_unreadable(objectnet):
    with pytest.raises(Exception, match="unreadable|cannot be read"):
        measured(classifier(**dict(objectnet, border=4)))
