"""Texts of every kind of input reach the dataset clean, and every picture keeps its class."""

import io
import json
import tarfile
import unicodedata

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mae_pp_jax.__main__ import main
from mae_pp_jax.data import fields, source

pytest.importorskip("apache_beam", reason="data build needs Apache Beam: pip install '.[beam]'")
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def _png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def _build(tmp_path, origin, *options, name="photos"):
    options = [f"--name={name}", f"--from={origin}", f"--data_dir={tmp_path}/tfds", "--splits=train:1", *options]
    assert main(["data", "build", *options]) == 0
    return tmp_path / "tfds" / name / "1.0.0"


def _read(folder):
    """id → (hashtags, caption, name of the class), read with TFDS alone."""
    builder = tfds.builder_from_directory(folder)
    found = {}
    for record in builder.as_data_source("train"):
        label = int(record.get("label", -1))
        found[record["id"].decode()] = (
            tuple(tag.decode() for tag in record.get("hashtags", ())),
            record.get("caption", b"").decode(),
            builder.info.features["label"].int2str(label) if label >= 0 else None,
        )
    return found


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(8):
        (tmp_path / "in" / f"{i}.png").write_bytes(_png(i))
    return tmp_path / "in"


def test_missing_values_of_json_are_nothing(photos, tmp_path):
    values = ["NaN", "null", "Infinity", "-Infinity", '""', '" "', "[]", '"nan"']
    lines = [f'{{"file": "{i}.png", "tags": {v}, "label": {v}, "caption": {v}}}' for i, v in enumerate(values)]
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    found = _read(_build(tmp_path, photos))
    assert [found[f"{i}.png"] for i in range(8)] == [((), "", None)] * 7 + [(("nan",), "nan", "nan")]


def test_texts_of_a_table(photos, tmp_path):
    rows = [
        ("file", "tags", "caption", "label"),
        ("0.png", "\"['dog', 'ice cream']\"", "Tom&#39;s #boat", "cat "),
        ("1.png", "dog|ice cream", "nan", " cat"),
        ("2.png", "nan", "see p#a #न्दी", "nan"),
        ("3.png", "\\N", "NULL", " "),
        ("4.png", "#dog❤️", "x", "none"),
        ("5.png", "dog #cat", "#C#1 #1", "Tom &amp; Jerry"),
        ("6.png", '"a;b\nc"', "", f'"{NFC}\n1"'),
        ("7.png", "a", "b", f"{NFD} 1"),
    ]
    (photos / "metadata.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    folder = _build(tmp_path, photos)
    assert _read(folder) == {
        "0.png": (("dog", "ice cream", "boat"), "Tom's #boat", "cat"),
        "1.png": (("dog", "ice cream"), "", "cat"),
        "2.png": (("न्दी",), "see p#a #न्दी", None),
        "3.png": ((), "", None),
        "4.png": (("dog", "❤"), "x", "none"),
        "5.png": (("dog", "cat", "C"), "#C#1 #1", "Tom & Jerry"),
        "6.png": (("a", "b", "c"), "", f"{NFC} 1"),
        "7.png": (("a",), "b", f"{NFC} 1"),
    }
    opened = source.open_source(source.DataConfig(name=str(folder)), "train")
    names = fields.names(opened, "label")
    assert names == ("Tom & Jerry", f"{NFC} 1", "cat", "none")
    assert [opened[i]["label"] for i in range(8)] == fields.labels(opened).tolist()


def test_an_object_in_place_of_hashtags_is_left_out_by_name(photos, tmp_path):
    rows = [dict(file="0.png", tags=["a"]), dict(file="1.png", tags={"dog": 0.9})]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = _build(tmp_path, photos)
    left = next(map(json.loads, (folder / "left_out.jsonl").read_text().splitlines()))
    assert left["input"] == "1.png" and "not an object" in left["detail"]


def test_texts_of_tars(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        members = {"0.cls": b" cat\n", "1.cls": b"\n", "0.txt": b"&#35;dog &amp; #sun\n", "1.tags": "dog，❤️".encode()}
        members |= {"2.json": b'{"label": NaN, "tags": [NaN, "a,b"], "caption": ["x", null]}'}
        for name, content in sorted({**members, **{f"{i}.png": _png(i) for i in range(3)}}.items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert _read(_build(tmp_path, tmp_path / "a.tar")) == {
        "a.tar/0": (("dog", "sun"), "#dog & #sun", "cat"),
        "a.tar/1": (("dog", "❤"), "", None),
        "a.tar/2": (("a", "b"), "x", None),
    }


def test_texts_of_records(tmp_path):
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "r.array_record"), "group_size:1")
    labels = [3.0, float("nan"), 10.0, 3.0]
    for i, label in enumerate(labels):
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(_png(i))
        example.features.feature["tags"].bytes_list.value.extend([b"#dog #cat", NFD.encode()])
        example.features.feature["label"].float_list.value.append(label)
        writer.write(example.SerializeToString())
    writer.close()
    found = _read(_build(tmp_path, tmp_path / "r.array_record"))
    assert [found[f"r.array_record/{i}"] for i in range(4)] == [
        (("dog", "cat", NFD), "", name) for name in ("3", None, "10", "3")
    ]


def test_classes_are_numbered_in_one_order_whatever_their_digits(tmp_path):
    names = ["①", "②", "m²", "10²", "class 10", "class 9", "class ٣", "01", "1", "9" * 100]
    for name in names:
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(2):
            (tmp_path / "in" / name / f"{i}.png").write_bytes(_png(i))
    folder = _build(tmp_path, tmp_path / "in")
    assert tfds.builder_from_directory(folder).info.features["label"].names == [
        *("01", "1", "10²", "9" * 100, "class ٣", "class 9", "class 10", "m²", "①", "②"),
    ]
    assert {(key.split("/")[0], name) for key, (_, _, name) in _read(folder).items()} == {(n, n) for n in names}


def test_names_of_classes_of_any_dataset_are_clean(photos, tmp_path):
    """Datasets that others wrote, or older ones, may hold a name in another form; names are what sets are joined by."""
    rows = [dict(file=f"{i}.png", label="tea" if i % 2 else NFC) for i in range(8)]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = _build(tmp_path, photos)
    (folder / "label.labels.txt").write_text(f"{NFD}\ntea\n")
    assert fields.names(source.open_source(source.DataConfig(name=str(folder)), "train"), "label") == (NFC, "tea")
    again = _build(tmp_path, folder, name="again")
    assert {name for _, _, name in _read(again).values()} == {NFC, "tea"}
