"""Images with rare hashtags come as often as the formula says, in every pass, at any step, without a list of positions."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import fields, mixture, orders, resampling, source
from tests.data import batches

RECORDS = 2000


class Tagged:
    """Records with the hashtags given: image i is filled with i."""

    def __init__(self, tags, vocabulary: int):
        self._tags = [np.array(t, np.int32) for t in tags]
        self.fields = {"image": fields.Image(), "hashtags": fields.Ids(tuple(map(str, range(vocabulary))))}
        self.fingerprint = source.digest(*(t.tobytes() for t in self._tags), str(vocabulary))
        self.counted = 0

    def __len__(self):
        return len(self._tags)

    def __getitem__(self, index):
        return {"image": np.full((4, 4, 3), index % 256, np.uint8), "hashtags": self._tags[index]}

    def column(self, name):
        assert name == "hashtags"
        self.counted += 1
        return iter(self._tags)

    def describe(self, index):
        return f"record {index}"


@pytest.fixture(scope="module")
def tagged():
    """A long tail over 50 hashtags, 0 to 5 an image."""
    rng = np.random.default_rng(0)
    chances = 1 / np.arange(1, 51) ** 1.5
    draws = [rng.choice(50, size=rng.integers(6), p=chances / chances.sum()) for _ in range(RECORDS)]
    return Tagged(draws, 50)


def _expected(tagged, form, threshold=0.02, length=1.5):
    """Repeat factors from the formula, image by image."""
    carried = [set(tagged[i]["hashtags"].tolist()) for i in range(len(tagged))]
    share = [sum(tag in tags for tags in carried) / len(tagged) for tag in range(50)]
    if form == "sqrt":
        return np.array([max([max(1.0, (threshold / share[t]) ** 0.5) for t in tags], default=1.0) for tags in carried])
    weights = np.array([max([share[t] ** -0.5 for t in tags], default=0.0) for tags in carried])
    return weights * length * len(tagged) / weights.sum()


@pytest.fixture
def make(tagged, tmp_path):
    def order(form, seed=0, threshold=0.02, length=1.5):
        return resampling.resampled(tagged, form, threshold, length, seed, str(tmp_path))

    return order


@pytest.mark.parametrize("form", ["sqrt", "swag"])
def test_each_pass_rounds_the_factor_up_or_down_and_their_mean_is_the_factor(tagged, make, form):
    order, expected = make(form), _expected(tagged, form)
    assert order.length == np.ceil(expected.sum().round(3)) and (expected > 1.5).sum() > 100
    passes = 60
    positions = np.arange(passes * order.length)
    counts = np.stack([np.bincount(p, minlength=RECORDS) for p in order.at(positions).reshape(passes, -1)])
    # A pass has up to one position more than the factors add up to.
    raised = expected * order.length / expected.sum()
    assert (counts >= np.floor(raised + 1e-6)).all() and (counts <= np.ceil(raised - 1e-6)).all()
    fraction = raised - np.floor(raised)
    spread = np.sqrt(fraction * (1 - fraction) / passes)
    assert (np.abs(counts.mean(0) - raised) <= 5 * spread + 1 / passes).all()  # rare events come one at a time
    assert len({row.tobytes() for row in counts}) > passes / 2


def test_the_order_of_a_pass_is_shuffled(make):
    records = make("sqrt").at(np.arange(1000))
    assert abs(np.corrcoef(records[1:], records[:-1])[0, 1]) < 0.1
    assert len(np.unique(records[:100] // (RECORDS // 10))) == 10


def test_a_position_does_not_depend_on_how_it_is_reached(make):
    order, other = make("sqrt"), make("sqrt", seed=1)
    whole = order.at(np.arange(3 * order.length))
    for position in (0, order.length - 1, order.length, 2 * order.length + 77):
        np.testing.assert_array_equal(order.at(np.arange(position, position + 5)), whole[position : position + 5])
    assert not np.array_equal(other.at(np.arange(100)), whole[:100])


def test_batches_resume_at_any_step(tagged, make):
    config = source.DataConfig(image_size=4, crop="none", threads=2)
    order = make("sqrt")

    def some(start, number):
        stream = batches.train_batches(tagged, config, global_batch=96, seed=0, start_step=start, order=order)
        return [next(stream) for _ in range(number)]

    whole, resumed = some(0, 60), some(43, 17)  # into the second pass
    for a, b in zip(whole[43:], resumed, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    np.testing.assert_array_equal(np.concatenate([b["record"] for b in whole]), order.at(np.arange(60 * 96)))


def test_hashtags_are_counted_once(tagged, make):
    before = tagged.counted
    make("sqrt")
    make("swag")
    assert tagged.counted == before + 1


def test_factors_that_are_all_one_give_every_record_once(make):
    order = make("sqrt", threshold=0.0)
    assert order.length == RECORDS
    np.testing.assert_array_equal(np.sort(order.at(np.arange(RECORDS))), np.arange(RECORDS))


def test_no_list_of_positions_is_made():
    codes = np.random.default_rng(0).integers(0, 3, 10**6).astype(np.uint8)
    tracemalloc.start()
    order = orders.Resampled(codes, np.array([1.0, 2.25, 400.0]), seed=0)
    order.at(np.arange(10**8, 10**8 + 256))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert order.length > 10**8 and held < 10**5  # bytes


def test_a_dataset_without_hashtags_is_refused(digits, digits_config):
    plain = dataclasses.replace(digits_config, resample="sqrt")
    bare = mixture.Renumbered(digits, {"hashtags": ()})
    with pytest.raises(UserError, match="data.resample: needs a dataset with hashtags"):
        source.training_order(bare, plain, 0)
