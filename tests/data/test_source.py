"""TFDS datasets: the embedded one, others by name, and what can be wrong with them."""

import dataclasses
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import fields, images, source, tfds_store


def _refused(split="train", **options):
    with pytest.raises(UserError) as error:
        source.open_source(source.DataConfig(**options), split)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_split_is_stratified_and_fixed(digits, digits_config):
    test = source.open_source(digits_config, "test")
    assert (len(digits), len(test)) == (1437, 360)
    whole = np.bincount(np.concatenate([fields.labels(digits), fields.labels(test)]))
    assert whole.sum() == 1797 and (whole >= 174).all()
    np.testing.assert_allclose(np.bincount(fields.labels(test)), whole * 360 / 1797, atol=1)
    pictures = {digits[i]["image"].tobytes() for i in range(len(digits))}
    assert not any(test[i]["image"].tobytes() in pictures for i in range(len(test)))


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    original = {np.round(p * 255 / 16).astype(np.uint8).tobytes(): label for p, label in zip(pixels, labels)}
    for i in range(0, len(digits), 50):
        image = digits[i]["image"]
        assert (image == image[..., :1]).all()
        assert original[image[..., 0].tobytes()] == digits[i]["label"]
    assert fields.names(digits, "label")[3] == "three"


def test_hashtags_point_to_the_label_more_often_than_not(digits):
    records = [digits[i] for i in range(len(digits))]
    named = [(r["label"], t) for r in records for t in r["hashtags"] if t < 10]
    right = np.mean([label == tag for label, tag in named])
    assert 0.8 < right < 0.9 and 0.65 < len(named) / len(records) < 0.78
    assert fields.names(digits, "hashtags")[:10] == fields.names(digits, "label")
    even = fields.names(digits, "hashtags").index("even")
    assert np.mean([r["label"] % 2 == 0 for r in records if even in r["hashtags"]]) > 0.85


def test_preparing_twice_gives_the_same_bytes(digits, digits_config, tmp_path):
    again = source.open_source(dataclasses.replace(digits_config, data_dir=str(tmp_path)), "train")
    assert again.fingerprint == digits.fingerprint
    for i in range(len(digits)):
        np.testing.assert_array_equal(again[i]["image"], digits[i]["image"])
        np.testing.assert_array_equal(again[i]["hashtags"], digits[i]["hashtags"])


def test_parts_of_a_split(digits, digits_config):
    first, rest = (source.open_source(digits_config, f"train[{part}]") for part in (":80%", "80%:"))
    assert len(first) + len(rest) == len(digits) and len(first) == round(0.8 * 1437)
    np.testing.assert_array_equal(np.concatenate([fields.labels(first), fields.labels(rest)]), fields.labels(digits))
    assert len({first.fingerprint, rest.fingerprint, digits.fingerprint}) == 3


def test_two_processes_prepare_at_once_after_one_was_killed(tmp_path):
    left = tmp_path / "digits_hashtags" / "incomplete.ABCDEF_1.0.0"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    program = textwrap.dedent("""
        import sys
        from mae_pp_jax.data import images, source
        records = source.open_source(source.DataConfig(data_dir=sys.argv[1]), "train")
        assert len(records) == 1437 and images.pixels(records[0]["image"]).shape == (8, 8, 3)
        assert "tensorflow" not in sys.modules, "TensorFlow must not be needed to write or to read"
    """)
    command = [sys.executable, "-c", program, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    outputs = [process.communicate()[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs == ["", ""]
    assert [p.name for p in (tmp_path / "digits_hashtags").iterdir()] == ["1.0.0"]


class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes noise under the real name, version and features of CIFAR-10, so that no network is needed to read it."""

    VERSION = tfds.builder_cls("cifar10").VERSION

    def _info(self):
        features = {"id": tfds.features.Text(), "image": tfds.features.Image(shape=(32, 32, 3))}
        features["label"] = tfds.features.ClassLabel(names=["airplane", "automobile", "bird", "cat"])
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(5)}

    def _generate_examples(self, number):
        for i in range(number):
            yield i, {"id": str(i), "image": cv2.imencode(".png", _noise(i)[..., ::-1])[1].tobytes(), "label": i % 4}


def _noise(i):
    return np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def _assert_cifar10(data_dir):
    records = source.open_source(source.DataConfig(name="cifar10", data_dir=data_dir), "train")
    assert len(records) == 12 and fields.names(records, "label")[3] == "cat" and fields.names(records, "hashtags") == ()
    expected = {_noise(i).tobytes(): i % 4 for i in range(12)}
    assert {images.pixels(records[i]["image"]).tobytes(): records[i]["label"] for i in range(12)} == expected
    np.testing.assert_array_equal(fields.labels(records), [records[i]["label"] for i in range(12)])
    assert records.describe(2) == "cifar10/3.0.2, split train, record 2"


def test_a_public_dataset_by_its_name(tmp_path):
    Cifar10(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    _assert_cifar10(str(tmp_path))


def test_a_missing_or_damaged_shard_is_named(tmp_path):
    Cifar10(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    config = source.DataConfig(name="cifar10", data_dir=str(tmp_path))
    (shard,) = (tmp_path / "cifar10" / "3.0.2").glob("*train*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=str(shard)):
        records = source.open_source(config, "train")
        [records[i] for i in range(len(records))]
    shard.unlink()
    with pytest.raises(UserError, match=f"shard {shard} of cifar10 is missing"):
        source.open_source(config, "train")


def test_a_prepared_dataset_by_its_folder(tmp_path):
    Cifar10(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    by_name = source.open_source(source.DataConfig(name="cifar10", data_dir=str(tmp_path)), "train")
    for folder in ("cifar10", "cifar10/3.0.2"):
        by_folder = source.open_source(source.DataConfig(name=str(tmp_path / folder)), "train")
        assert by_folder.fingerprint == by_name.fingerprint


def test_tfrecord_is_refused_with_the_command_that_converts_it(tmp_path):
    Cifar10(data_dir=tmp_path).download_and_prepare(file_format="tfrecord")
    folder = tmp_path / "cifar10" / "3.0.2"
    files = sorted(p.name for p in folder.iterdir())
    assert f"python -m mae_pp_jax data prepare --name=cifar10 --data_dir={tmp_path}" in _refused(
        name="cifar10", data_dir=str(tmp_path)
    )
    (shard,) = folder.glob("*train*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    with pytest.raises(UserError, match="ends in the middle of a record"):
        tfds_store.convert("cifar10", str(tmp_path))
    assert sorted(p.name for p in folder.iterdir() if "test" not in p.name) == [f for f in files if "test" not in f]
    assert "has no random access" in _refused(name="cifar10", data_dir=str(tmp_path))
    shard.write_bytes(whole)
    tfds_store.convert("cifar10", str(tmp_path))
    _assert_cifar10(str(tmp_path))
    shards = ["cifar10-test.array_record-00000-of-00001", "cifar10-train.array_record-00000-of-00001"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(files + shards)
    assert len(tfds.builder_from_directory(folder, file_format="tfrecord").info.splits["train"].filepaths) == 1


def test_bad_names_and_splits_are_refused_in_one_line(data_dir, tmp_path):
    assert _refused(name="digit_hashtags").endswith("did you mean digits_hashtags?")
    assert _refused(name="cifar01").endswith("did you mean cifar10?")
    assert "neither a folder nor a dataset" in _refused(name="no such thing at all")
    assert "only: 3.0.1" in _refused(name="mnist:9.9.9")
    assert "it has train (1,437), test (360)" in _refused("tset", data_dir=data_dir)
    assert "does not exist or is empty" in _refused("train[:0]", data_dir=data_dir)
    assert "Manual directory" in _refused(name="imagenet2012", data_dir=str(tmp_path / "new"))
    assert not list(tmp_path.glob("new/*"))  # nothing half-made is left


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot write to" in _refused(data_dir=str(tmp_path / "file"))


class NoPictures(tfds.core.GeneratorBasedBuilder):
    """A dataset without images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"text": "a", "label": 0}


def test_dataset_without_images_is_refused_with_its_features(tmp_path):
    message = _refused(name="no_pictures", data_dir=str(tmp_path))
    assert "is no image dataset" in message and "text (Text)" in message and "label (ClassLabel)" in message


def test_subset_is_a_source_of_the_records_chosen(digits):
    chosen = np.array([5, 3, 900])
    subset = source.Subset(digits, chosen)
    assert len(subset) == 3 and fields.names(subset, "label") == fields.names(digits, "label")
    np.testing.assert_array_equal(subset[2]["image"], digits[900]["image"])
    np.testing.assert_array_equal(fields.labels(subset), fields.labels(digits)[chosen])
    assert subset.describe(1) == digits.describe(3)
    assert subset.fingerprint != source.Subset(digits, chosen[::-1]).fingerprint


def test_few_shot_draws_the_same_number_of_each_class():
    labels = np.array([0, 1, 2] * 20 + [3, -1, -1])
    chosen = source.few_shot_indices(labels, 5, seed=0)
    assert chosen.dtype == np.int64 and len(set(chosen)) == len(chosen)
    np.testing.assert_array_equal(labels[chosen], [0] * 5 + [1] * 5 + [2] * 5 + [3])
    np.testing.assert_array_equal(chosen, source.few_shot_indices(labels, 5, seed=0))
    assert not np.array_equal(chosen, source.few_shot_indices(labels, 5, seed=1))
    assert set(source.few_shot_indices(labels, 2, seed=0)) < set(chosen)


def test_config_refuses_impossible_crops():
    with pytest.raises(UserError, match="data.crop_scale: must be 2 numbers"):
        source.DataConfig(crop_scale=(0.5,))
    with pytest.raises(UserError, match="data.crop_ratio: must be two rising numbers"):
        source.DataConfig(crop_ratio=(2.0, 1.0))
