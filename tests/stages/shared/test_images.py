"""What stages on images make of records: crops, labels and hashtags of fixed shapes, the same for a seed as ever."""

import dataclasses
import hashlib
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import evals, fields, images, source
from mae_pp_jax.models import vit
from mae_pp_jax.stages import registry
from mae_pp_jax.stages.shared.image_config import ImageStageConfig
from mae_pp_jax.stages.shared.images import ImageStage


class _Stage(ImageStage):
    """Reads everything that there is of an image."""

    def targets(self):
        return {"label": (), "hashtags": (self.config.data.max_tags,), "hashtags_cut": ()}


def _stage(global_batch=96, seed=5, test=evals.EvalConfig(), **data):
    data = source.DataConfig(**{"image_size": 8, "crop": "shift", "cache": "ram", "threads": 2, **data})
    model = vit.VitConfig(size="Ti/4")
    return _Stage(
        ImageStageConfig(stage="x", data=data, evals={"test": test}, global_batch=global_batch, seed=seed, model=model)
    )


def _digest(batches):
    sha = hashlib.sha256()
    for batch in batches:
        for name in ("image", "label", "hashtags", "record", "unreadable", "mask"):
            if name in batch:
                sha.update(np.ascontiguousarray(batch[name]).tobytes())
    return sha.hexdigest()[:16]


@pytest.mark.parametrize("crop, expected", [("shift", "36d39f9fcfc1c8d2"), ("none", "5adf55d3ad8615e4")])
def test_training_batches_are_those_of_earlier_versions(crop, expected):
    """The digest of four batches by the version before stages loaded records: resumed runs go on with its images."""
    stage = _stage(crop=crop)
    batches = stage.batches_of(stage.train_source, stage.train_order, seed=5, start_step=3)
    assert _digest(itertools.islice(batches, 4)) == expected


def test_evaluation_batches_are_those_of_earlier_versions():
    assert _digest(_stage(global_batch=128).eval_batches("test")) == "2b39daf798c39ec5"


def test_batches_are_as_declared():
    stage = _stage()
    for batch in (next(stage.train_batches(0)), next(stage.eval_batches("test"))):
        for name, spec in stage.batch_spec().items():
            assert (batch[name].shape, batch[name].dtype) == (spec.shape, spec.dtype)


@pytest.mark.parametrize("crop", ["random_resized", "shift", "none"])
def test_images_need_not_be_square(crop):
    stage = _stage(crop=crop)
    data = dataclasses.replace(stage.config.data, image_size=(8, 12))
    stage.config = dataclasses.replace(stage.config, data=data)
    assert next(stage.train_batches(0))["image"].shape == (96, 8, 12, 3)
    assert next(stage.eval_batches("test"))["image"].shape == (96, 8, 12, 3)


def test_crop_none_shows_what_the_evaluation_shows():
    stage = _stage(crop="none", test=evals.EvalConfig(share=0.5))
    record = stage.train_source[0]
    image = images.center_crop(record["image"], (8, 8), 0.5)
    np.testing.assert_array_equal(stage.load(record, np.zeros(stage.draws))["image"], image)


class _Tagged(fields.Wrapper):
    """Records that carry the hashtags given, and maybe no label."""

    def __init__(self, tags, label=0):
        self._tags, self._label = [np.array(t, np.int32) for t in tags], label
        names = tuple(map(str, range(1 + max(max(t, default=0) for t in tags))))
        self.fields = {"image": fields.Image(), "label": fields.Label(("a",)), "hashtags": fields.Ids(names)}
        self.fingerprint = source.digest(*(t.tobytes() for t in self._tags))

    def __len__(self):
        return len(self._tags)

    def __getitem__(self, index):
        image = np.full((8, 8, 3), index, np.uint8)
        return {"image": image, "label": self._label, "hashtags": self._tags[index]}

    def column(self, name):
        return (self[i][name] for i in range(len(self)))

    def describe(self, index):
        return f"record {index}"


def _with(stage, records):
    stage.train_source = stage.eval_sources["test"] = records
    return stage


def test_of_too_many_hashtags_the_rarest_stay_where_resampling_counts_them(tmp_path):
    """The lower an id, the commoner it is: 0 is on all images, 9 on one."""
    tags = [np.arange(i + 1) for i in range(10)]
    stage = _with(
        _stage(global_batch=10, max_tags=3, crop="none", resample="sqrt", cache_dir=str(tmp_path)), _Tagged(tags)
    )
    for batch in (next(stage.train_batches(0)), next(stage.eval_batches("test"))):
        for image, found, cut in zip(batch["image"], batch["hashtags"], batch["hashtags_cut"]):
            every = tags[image[0, 0, 0]]
            assert found[found >= 0].tolist() == every[-3:].tolist() and cut == max(len(every) - 3, 0)


def test_of_too_many_hashtags_others_are_kept_each_time_by_the_position_alone():
    stage = _with(_stage(global_batch=4, max_tags=3, seed=2), _Tagged([np.arange(20)] * 4))
    whole = [batch["hashtags"] for batch in itertools.islice(stage.train_batches(0), 20)]
    rows = np.concatenate(whole)
    assert (np.diff(rows) > 0).all() and len({row.tobytes() for row in rows}) > 60
    counts = np.bincount(rows.ravel(), minlength=20)  # 240 draws: 12 of each, a standard deviation of 3.2
    assert counts.min() > 0 and counts.max() < 28
    np.testing.assert_array_equal(next(stage.train_batches(13))["hashtags"], whole[13])
    first, again = (next(stage.eval_batches("test"))["hashtags"] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_hashtags_that_are_cut_are_counted():
    stage = _with(_stage(global_batch=4, max_tags=3), _Tagged([[0, 1, 2, 3, 4], [1], [], [0, 1, 2, 3]]))
    counts = stage.counts({name: jnp.asarray(value) for name, value in next(stage.train_batches(0)).items()})
    assert {name: int(count) for name, count in counts.items()} == {"data/unreadable": 0, "data/hashtags_cut": 3}


def test_a_missing_label_is_an_error_that_names_the_record():
    stage = _with(_stage(global_batch=2), _Tagged([[0], [0]], label=-1))
    for batches in (stage.train_batches(0), stage.eval_batches("test")):
        with pytest.raises(UserError, match=r"^data: record \d has no label; choose a split"):
            next(batches)


def test_configs_of_earlier_versions_get_todays_keys():
    old = dict(stage="mae", data=dict(name="a", eval_name="b", eval_split="val", eval_crop="squeeze", eval_share=0.9))
    new = ImageStageConfig.upgrade(old)
    assert new == dict(
        stage="mae", data=dict(name="a"), evals=dict(test=dict(data="b", split="val", crop="squeeze", share=0.9))
    )
    assert "eval_name" in old["data"] and ImageStageConfig.upgrade(new) == new
    assert ImageStageConfig.upgrade({"stage": "mae"}) == {"stage": "mae"}


@pytest.mark.parametrize("name", ["train", "data", "speed"])
def test_an_evaluation_set_does_not_take_the_names_of_training_metrics(name):
    with pytest.raises(UserError, match=f"config.evals.{name}: "):
        registry.create(registry.resolve(dict(stage="mae"), {f"evals.{name}.split": "test"}))
