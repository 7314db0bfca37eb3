"""Records of any fields: every source and wrapper passes on what it does not know, and columns are read once."""

import dataclasses

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import caching, fields, mixture, source, tfds_store
from tests.data.pictures import class_folders

ROWS = [
    {"label": i % 3 - 1, "hashtags": ["sea", "blue sky"][: i % 3], "caption": f"Nr. {i} – é", "kinds": [0, 1][: i % 3]}
    for i in range(7)
]


class Captioned(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images with a feature of each kind that is read, and one that is not."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = dict(
            image=tfds.features.Image(),
            label=tfds.features.ClassLabel(names=["cat", "dog"]),
            hashtags=tfds.features.Sequence(tfds.features.Text()),
            caption=tfds.features.Text(),
            kinds=tfds.features.Sequence(tfds.features.ClassLabel(names=["photo", "drawing"])),
            boxes=tfds.features.Sequence(tfds.features.BBoxFeature()),
        )
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, row in enumerate(ROWS):
            image = cv2.imencode(".png", np.full((4, 5, 3), i, np.uint8))[1].tobytes()
            yield i, row | {"image": image, "boxes": []}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """(config of a dataset with all kinds of fields, its source)."""
    folder = tmp_path_factory.mktemp("captioned")
    Captioned(data_dir=folder).download_and_prepare(file_format="array_record")
    config = source.DataConfig(name=str(folder / "captioned"), cache_dir=str(folder / "cache"))
    return config, source.open_source(config, "train")


def _row(record):
    """A record as it stands in `ROWS`."""
    row = {name: np.asarray(value).tolist() for name, value in record.items() if name != "image"}
    return row | {"number": int(np.max(caching.images.pixels(record["image"])))}


def _rows(records):
    return [_row(records[i]) for i in range(len(records))]


def test_a_dataset_of_tfds_has_every_field_that_can_be_read(captioned):
    _, records = captioned
    assert records.fields == {
        "image": fields.Image(),
        "label": fields.Label(("cat", "dog")),
        "hashtags": fields.Texts(),
        "caption": fields.Text(),
        "kinds": fields.Ids(("photo", "drawing")),
    }
    found = sorted(_rows(records), key=lambda row: row["number"])
    assert found == [row | {"number": i} for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_caches_hold_every_field(captioned, cache, tmp_path):
    config, plain = captioned
    for _ in range(2):
        cached = source.open_source(dataclasses.replace(config, cache=cache, cache_dir=str(tmp_path)), "train")
        assert cached.fields == plain.fields and _rows(cached) == _rows(plain)
        assert isinstance(cached[0]["hashtags"], tuple) and cached[0]["kinds"].dtype == np.int32
        for name in ("label", "hashtags", "caption", "kinds"):
            assert [np.asarray(v).tolist() for v in cached.column(name)] == [row[name] for row in _rows(plain)]


def test_wrappers_pass_on_what_they_do_not_know(captioned):
    _, plain = captioned
    rows = _rows(plain)
    simulated = source.SimulatedHashtags(source.Subset(plain, np.flatnonzero(fields.labels(plain) >= 0)))
    assert [simulated[i]["caption"] for i in range(4)] == [r["caption"] for r in rows if r["label"] >= 0][:4]
    mixed = mixture.Mixture([source.Subset(plain, np.arange(3)), mixture.Renumbered(plain, {"kinds": ()})], [1, 1])
    assert mixed.fields.keys() == {"image", "label", "hashtags", "caption"}
    assert _rows(mixed) == [{k: v for k, v in row.items() if k != "kinds"} for row in rows[:3] + rows]
    assert list(mixed.column("caption")) == [row["caption"] for row in rows[:3] + rows]


def test_names_of_any_field_are_joined_in_a_mixture(captioned):
    _, plain = captioned
    other = mixture.Renumbered(plain, {"kinds": ("drawing", "sketch", "photo")})
    expected = [[2 * (1 - kind) for kind in row["kinds"]] for row in _rows(plain)]
    assert [other[i]["kinds"].tolist() for i in range(7)] == expected
    mixed = mixture.Mixture([other, plain], [1, 1])
    assert fields.names(mixed, "kinds") == ("drawing", "sketch", "photo")
    assert _rows(mixed)[7:] == _rows(other)


@pytest.mark.parametrize("name", ["label", "hashtags", "caption", "kinds"])
def test_a_column_is_read_once_and_no_record_at_a_second_start(captioned, monkeypatch, tmp_path, name):
    config, plain = captioned
    config, expected = dataclasses.replace(config, cache_dir=str(tmp_path)), [row[name] for row in _rows(plain)]
    read = []
    features = tfds_store.TfdsSource._features
    monkeypatch.setattr(tfds_store.TfdsSource, "_features", lambda self, i: read.append(i) or features(self, i))
    for _ in range(2):
        values = source.open_source(config, "train").column(name)
        assert [np.asarray(value).tolist() for value in values] == expected
        assert sorted(read) == list(range(7))


def test_a_damaged_column_is_one_line(captioned, tmp_path):
    config, _ = captioned
    config = dataclasses.replace(config, cache_dir=str(tmp_path))
    fields.labels(source.open_source(config, "train"))
    (file,) = tmp_path.rglob("label/values.bin")
    file.write_bytes(b"1234")
    with pytest.raises(UserError, match=r"data.cache_dir: .*\.label is damaged; remove it"):
        fields.labels(source.open_source(config, "train"))


def test_labels_of_a_dataset_without_are_refused(digits):
    with pytest.raises(UserError, match="has no labels"):
        fields.labels(mixture.Renumbered(digits, {"label": ()}))


def test_fingerprints_are_those_of_earlier_versions(digits, digits_config, tmp_path):
    """Values from the version before sources declared fields: runs of that time go on."""
    pets, birds = (
        class_folders(tmp_path / "pets", ("cat", "dog"), 10, ".bmp"),
        class_folders(tmp_path / "birds", ("bird", "cat"), 30, ".bmp"),
    )
    mixed = f"{pets}=3,{birds}=1"

    def fingerprint(split="train", **changes):
        return source.open_source(dataclasses.replace(digits_config, **changes), split).fingerprint

    assert (digits.fingerprint, fingerprint("test")) == ("2e6a276d093582c7", "419fe7495e660979")
    assert (fingerprint(name=pets), fingerprint("test", name=pets)) == ("16a84865d31675c3", "ac51cb96be3316ec")
    assert fingerprint(hashtags="simulated") == "e13f9d2198996815"
    assert fingerprint(name=pets, hashtags="simulated", untagged="skip") == "af622e6a23606918"
    assert source.Subset(digits, np.arange(7)).fingerprint == "cd5ef067a23de1d3"
    assert fingerprint(name=mixed) == "728e638ed376a1f1"
