"""Mixtures: shares by weight, names joined, any step at once."""

import dataclasses
import re

import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import evals, fields, images, mixture, orders, source
from tests.data import batches
from tests.data.pictures import class_folders


@pytest.fixture
def config(tmp_path, digits_config):
    pets = class_folders(tmp_path / "pets", ("cat", "dog"), 10, size=(8, 8))
    birds = class_folders(tmp_path / "birds", ("bird", "cat"), 30, size=(8, 8))
    name = f"{pets}=3,{birds}=1"
    return dataclasses.replace(digits_config, name=name, eval_fraction=0.2, crop="none")


@pytest.fixture
def mixed(config):
    return source.open_source(config, "train")


def test_classes_are_joined_by_name(mixed):
    assert fields.names(mixed, "label") == ("cat", "dog", "bird")
    assert len(mixed) == 16 + 48
    names = [mixed.describe(i).split("/")[-2] for i in range(len(mixed))]
    assert [fields.names(mixed, "label")[label] for label in fields.labels(mixed)] == names
    assert [fields.names(mixed, "label")[mixed[i]["label"]] for i in range(len(mixed))] == names


def test_each_dataset_has_its_share_and_goes_through_all_of_its_records(mixed, config):
    order = source.training_order(mixed, config, seed=0)
    records = order.at(np.arange(2**16))
    first = records < 16
    assert first.sum() == 3 * 2**14
    for part in np.split(first, 64):
        assert abs(part.mean() - 0.75) < 0.08  # spread evenly: 5 standard deviations of 1,024 draws
    for passes, number in ((records[first], 16), (records[~first] - 16, 48)):
        whole = passes[: len(passes) // number * number].reshape(-1, number)
        np.testing.assert_array_equal(np.sort(whole, 1), np.broadcast_to(np.arange(number), whole.shape))


def test_a_position_does_not_depend_on_how_it_is_reached(mixed, config):
    order = source.training_order(mixed, config, seed=3)
    whole = order.at(np.arange(2**16 + 500))
    for start in (0, 777, 2**16 - 3, 2**16 + 400):
        np.testing.assert_array_equal(order.at(np.arange(start, start + 9)), whole[start : start + 9])


def test_batches_are_of_the_records_named(mixed, config):
    stream = batches.train_batches(
        mixed, config, global_batch=32, seed=0, start_step=50, order=source.training_order(mixed, config, 0)
    )
    batch = next(stream)
    for image, label, index in zip(batch["image"], batch["label"], batch["record"]):
        np.testing.assert_array_equal(image, images.pixels(mixed[index]["image"]))
        assert label == mixed[index]["label"]


def test_equal_datasets_go_different_ways():
    parts = [orders.Shuffled(1000, 0, stream) for stream in (0, 1)]
    assert not np.array_equal(*(part.at(np.arange(1000)) for part in parts))


def test_evaluation_data_is_numbered_as_the_training_data(mixed, config, tmp_path):
    held_out = evals.open_eval_source(
        config, evals.EvalConfig(data=str(tmp_path / "birds")), evals.Known(evals.names_of(mixed))
    )
    assert fields.names(held_out, "label") == fields.names(mixed, "label") and len(held_out) == 12
    names = [held_out.describe(i).split("/")[-2] for i in range(12)]
    assert [fields.names(mixed, "label")[label] for label in fields.labels(held_out)] == names


def test_evaluation_data_of_other_classes_is_refused(mixed, config, tmp_path):
    other = evals.EvalConfig(data=class_folders(tmp_path / "other", ("car", "van"), 5, size=(8, 8)))
    with pytest.raises(UserError, match="evals.objects.data: .*other has none of the classes of the training data"):
        evals.open_eval_source(config, other, evals.Known(evals.names_of(mixed)), "objects")


def test_hashtags_are_joined_by_name(digits):
    few = source.Subset(digits, np.arange(3))
    other = mixture.Renumbered(digits, {"hashtags": fields.names(digits, "hashtags")[::-1]})
    both = mixture.Mixture([few, other], [1, 1])
    assert fields.names(both, "hashtags") == fields.names(digits, "hashtags")
    for index, record in ((1, 1), (3 + 70, 70)):
        assert set(both[index]["hashtags"]) == set(digits[record]["hashtags"])
    without = mixture.Mixture([few, mixture.Renumbered(digits, {"hashtags": ()})], [1, 1])
    assert "hashtags" not in without.fields and all("hashtags" not in without[i] for i in (0, 5))


@pytest.mark.parametrize("name", ["a=1,b", "a=0,b=1", "a=x", "=2", "a=1,a=2"])
def test_bad_mixtures_are_refused(name, digits_config):
    with pytest.raises(UserError, match="^data.name: "):
        source.open_source(dataclasses.replace(digits_config, name=name), "train")


@pytest.mark.parametrize("weight", ["1.2.3", "nan", "inf", "1e999", "-1", ".", "1e", "1_0"])
def test_weights_that_are_no_numbers_are_refused(weight):
    with pytest.raises(UserError, match="^data.name: '/b=.*' in a mixture must be NAME=WEIGHT with a weight above 0"):
        mixture.parse(f"/a=1,/b={weight}")


@pytest.mark.parametrize("name", ["/a=1,/b=1e-6", "/b=1e-7,/a=0.7,/c=0.3", "/a=1000000,/b=5"])
def test_a_dataset_that_would_never_be_read_is_refused_with_the_least_weight_that_works(name):
    with pytest.raises(UserError, match="/b would never be read; give it at least ") as error:
        mixture.parse(name)
    least = re.search(r"at least ([0-9.e+-]+),", str(error.value))[1]
    parts = mixture.parse(re.sub(r"/b=[^,]+", f"/b={least}", name))
    assert orders.shares(list(parts.values()))[list(parts).index("/b")] == 1


def test_the_sum_of_weights_is_a_number():
    with pytest.raises(UserError, match="too large"):
        mixture.parse("/a=1e308,/b=1e308")
