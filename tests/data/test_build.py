"""`data build`: every kind of input, with everything that can be wrong in it, becomes a dataset that training reads."""

import collections
import csv
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from mae_pp_jax.__main__ import main
from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import decode, fields, jpeg_restarts, source
from mae_pp_jax.data.building import build, sidecar
from tests.data.pictures import encode

pytest.importorskip("apache_beam", reason="data build needs Apache Beam: pip install '.[beam]'")


def _picture(seed, height=24, width=32):
    """A smooth picture of its own, uint8 [height, width, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _encoded(seed, extension=".png", **size):
    return cv2.imencode(extension, _picture(seed, **size))[1].tobytes()


def _build(tmp_path, *options, name="photos", expect=0):
    assert main(["data", "build", f"--name={name}", f"--data_dir={tmp_path}/tfds", *options]) == expect
    folder = tmp_path / "tfds" / name / "1.0.0"
    return folder if expect == 0 else None


def _report(folder):
    left = [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]
    return json.loads((folder / "build_report.json").read_text()), {e["input"]: e["reason"] for e in left}


def _records(tmp_path, name="photos", splits=("train", "test")):
    """id → (record as TFDS's own decoder gives it, split)."""
    builder = tfds.builder(name, data_dir=str(tmp_path / "tfds"))
    found = {}
    for split in (s for s in splits if s in builder.info.splits):
        for record in builder.as_data_source(split):
            found[record["id"].decode()] = record, split
    return found


def _bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def photos(tmp_path):
    """A folder with 40 good images and a sidecar that also names everything that cannot be used."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    rows = []
    for i in range(40):
        name = f"sub/{i:02}.{'jpg' if i % 2 else 'png'}"
        (root / name).write_bytes(_encoded(i, os.path.splitext(name)[1]))
        rows.append(dict(file=name, hashtags=["#Dog", f"tag{i % 4}"], caption=f"a dog #Big_One {i}", kind=f"k{i % 3}"))
    (tmp_path / "secret.png").write_bytes(_encoded(99))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "cut.jpg").write_bytes(_encoded(1, ".jpg", height=200, width=200)[:-400])
    (root / "cut.png").write_bytes(_encoded(1, ".png", height=200, width=200)[:-400])
    (root / "text.jpg").write_text("not an image")
    (root / "empty.png").write_bytes(b"")
    (root / "tiny.png").write_bytes(_encoded(1, height=15, width=40))
    bomb = bytearray(_encoded(1))
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2  # width and height in the header
    (root / "bomb.png").write_bytes(bomb)
    (root / "unnamed.png").write_bytes(_encoded(7))
    bad = ["none.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "cut.jpg", "cut.png", "text.jpg"]
    bad += ["empty.png", "tiny.png", "bomb.png", "sub/00.png", "sub/./00.png", "a\0b.png"]
    lines = [json.dumps(row) for row in rows + [dict(file=name, hashtags="x") for name in bad]]
    (root / "metadata.jsonl").write_text("\n".join([*lines, "{broken", '"text"', '{"hashtags": ["a"]}', ""]))
    return root


def test_folder_with_sidecar_and_all_that_can_be_wrong(photos, tmp_path, capsys):
    folder = _build(tmp_path, f"--from={photos}", "--columns=label:kind", "--splits=train:0.7,test:0.3")
    report, left = _report(folder)
    reasons = {
        "none.png": "missing",
        "../secret.png": "outside the folder",
        str(tmp_path / "secret.png"): "outside the folder",
        "link.png": "outside the folder",
        "cut.jpg": "unreadable",
        "cut.png": "unreadable",
        "text.jpg": "unreadable",
        "empty.png": "unreadable",
        "tiny.png": "too small",
        "bomb.png": "unreadable",
        "sub/00.png": "listed twice",
        "a\0b.png": "unreadable",
        "metadata.jsonl, row 54": "damaged entry",
        "metadata.jsonl, row 55": "damaged entry",
        "metadata.jsonl, row 56": "damaged entry",
        "unnamed.png": "in no row of the sidecar",
    }
    assert left == reasons
    assert report["found"] == 40 + len(reasons) + 1  # sub/00.png twice
    assert sum(report["left_out"].values()) == len(reasons) + 1 and sum(report["written"].values()) == 40
    assert report["classes"] == ["k0", "k1", "k2"]
    out = capsys.readouterr().out
    assert "57 found, 40 written, 17 left out" in out and "data hashtags --name=photos" in out

    records = _records(tmp_path)
    assert sorted(records) == sorted(f"sub/{i:02}.{'jpg' if i % 2 else 'png'}" for i in range(40))
    for name, (record, _) in records.items():
        i = int(name[4:6])
        assert [t.decode() for t in record["hashtags"]] == ["Dog", f"tag{i % 4}", "Big_One"]
        assert record["caption"].decode() == f"a dog #Big_One {i}" and record["label"] == i % 3
        stored = decode.decode((photos / name).read_bytes())
        if name.endswith("png"):
            np.testing.assert_array_equal(record["image"], stored)
    assert {split for _, split in records.values()} == {"train", "test"}


def test_training_reads_what_was_built(photos, tmp_path):
    _build(tmp_path, f"--from={photos}", "--columns=label:kind")
    vocabulary = tmp_path / "v.json"
    where = f"--data_dir={tmp_path}/tfds"
    arguments = ["--name=photos", where, f"--to={vocabulary}", "--wordnet=none", "--stop=tag0"]
    assert main(["data", "hashtags", *arguments]) == 0
    config = source.DataConfig(name="photos", data_dir=str(tmp_path / "tfds"), vocabulary=str(vocabulary))
    train = source.open_source(config, "train")
    assert set(fields.names(train, "hashtags")) == {"dog", "bigone", "tag1", "tag2", "tag3"}
    assert fields.names(train, "label") == ("k0", "k1", "k2")
    raw = source.open_source(source.DataConfig(name="photos", data_dir=str(tmp_path / "tfds")), "train")
    for i in range(len(train)):
        tags = {t.lower().replace("_", "").lstrip("#") for t in raw[i]["hashtags"]} - {"tag0"}
        assert train[i]["caption"] == raw[i]["caption"] and raw[i]["caption"].startswith("a dog #Big_One ")
        assert {fields.names(train, "hashtags")[t] for t in train[i]["hashtags"]} == tags
    for suffix in (".md", ".png"):
        assert vocabulary.with_suffix(suffix).stat().st_size > 500


def test_a_folder_of_the_same_name_is_not_taken_for_the_dataset(tmp_path, monkeypatch):
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "photos" / label / f"{i}.png").write_bytes(_encoded(i))
    monkeypatch.chdir(tmp_path)
    _build(tmp_path, "--from=photos", "--splits=train:1")
    where = str(tmp_path / "tfds")
    with pytest.raises(UserError, match=r"write ./photos for the folder, photos:\*.\*.\* for the dataset"):
        source.open_source(source.DataConfig(name="photos", data_dir=where), "train")
    found = {
        name: source.open_source(source.DataConfig(name=name, data_dir=where), "train").describe(0)
        for name in ("./photos", "photos:*.*.*")
    }
    assert (
        found["./photos"].startswith("photos/cat/") and found["photos:*.*.*"] == "photos/1.0.0, split train, record 0"
    )


def test_csv_with_quoted_cells(tmp_path):
    root = tmp_path / "csv"
    root.mkdir()
    rows = [["a.png", 'two\nlines, "quoted" #sun', "sea, blue sky"], ["b.png", "", "#x #y"], ["c.png", "plain", ""]]
    for i, row in enumerate(rows):
        (root / row[0]).write_bytes(_encoded(i))
    text = io.StringIO()
    csv.writer(text).writerows([["picture", "text", "tags"], *rows, ["short.png"]])
    (root / "rows.csv").write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
    options = ["--sidecar=rows.csv", "--columns=image:picture", "--splits=train:1"]
    folder = _build(tmp_path, f"--from={root}", *options)
    records = _records(tmp_path)
    assert {name: [t.decode() for t in record["hashtags"]] for name, (record, _) in records.items()} == {
        "a.png": ["sea", "blue sky", "sun"],
        "b.png": ["x", "y"],
        "c.png": [],
    }
    assert records["a.png"][0]["caption"].decode() == 'two\nlines, "quoted" #sun'
    assert _report(folder)[1] == {"rows.csv, row 4": "damaged entry"}


def _tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path):
    """Three tars, one compressed and one cut off, with hostile names."""
    folder = tmp_path / "tars"
    folder.mkdir()
    members = []
    for i in range(6):
        members += [(f"d/{i}.jpg", _encoded(i, ".jpg")), (f"d/{i}.json", json.dumps({"tags": ["a", f"t{i}"]}).encode())]
    members += [("d/6.txt", b"no picture"), ("../../evil.png", _encoded(6)), ("/abs.v1.png", _encoded(7))]
    members += [("d/bad.jpg", b"\xff\xd8\xff nothing"), ("d/9.png", _encoded(9)), ("d/9.json", b"{")]
    _tar(folder / "a.tar", members)
    _tar(folder / "b.tar.gz", [("1.png", _encoded(11)), ("1.txt", b"one #b"), ("1.cls", b"3")], "w:gz")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = cv2.imencode(".png", noise)[1].tobytes()
    _tar(folder / "c.tar", [("x.png", whole), ("y.png", whole), ("z.png", whole)])
    data = (folder / "c.tar").read_bytes()
    (folder / "c.tar").write_bytes(data[: 2 * len(whole) + 3000])
    return folder


def test_webdataset_tars(tars, tmp_path):
    before = set(tmp_path.rglob("*")) | set(tmp_path.parent.glob("*"))
    folder = _build(tmp_path, f"--from={tars}/*.tar*", "--splits=train:1")
    report, left = _report(folder)
    assert left == {
        "a.tar/d/6": "no image",
        "a.tar/d/bad": "unreadable",
        "a.tar/d/9": "damaged entry",
        "c.tar, after z": "damaged entry",
    }
    records = _records(tmp_path)
    expected = [f"a.tar/d/{i}" for i in range(6)] + [
        "a.tar/../../evil",
        "a.tar//abs",
        "b.tar.gz/1",
        "c.tar/x",
        "c.tar/y",
    ]
    assert sorted(records) == sorted(expected)
    assert [t.decode() for t in records["a.tar/d/3"][0]["hashtags"]] == ["a", "t3"]
    one = records["b.tar.gz/1"][0]
    assert one["caption"] == b"one #b" and [t.decode() for t in one["hashtags"]] == ["b"] and report["classes"] == ["3"]
    new = (set(tmp_path.rglob("*")) | set(tmp_path.parent.glob("*"))) - before
    assert all(path.is_relative_to(tmp_path / "tfds") for path in new)


@pytest.mark.parametrize("label", ["label", "fine_label"])
def test_parquet_files_of_hugging_face(tmp_path, label):
    (tmp_path / "in" / "data").mkdir(parents=True)
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        images = [dict(bytes=_encoded(i), path=f"{i}.png") for i in numbers]
        table = pa.table({"image": images, label: [i % 2 for i in numbers], "text": [f"#tag{i}" for i in numbers]})
        features = {label: {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, tmp_path / "in" / "data" / f"{split}-00000-of-00001.parquet")
    report, left = _report(_build(tmp_path, f"--from={tmp_path / 'in'}"))
    assert report["written"] == {"train": 4, "test": 2} and report["classes"] == ["zebra", "ant"] and not left
    record, split = _records(tmp_path)["data/test-00000-of-00001.parquet/1"]
    assert (record["label"], list(record["hashtags"]), split) == (1, [b"tag5"], "test")
    np.testing.assert_array_equal(record["image"], _picture(5)[..., ::-1])
    _build(tmp_path, f"--from={tmp_path / 'in'}", "--columns=label:kind", name="other", expect=2)


def test_class_folders_with_their_own_splits(tmp_path):
    root = tmp_path / "classes"
    for split, number in (("train", 4), ("val", 2)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(number):
                (root / split / label / f"{i}.PNG").write_bytes(_encoded(i))
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    report, left = _report(_build(tmp_path, f"--from={root}"))
    assert report["written"] == {"train": 8, "val": 4} and report["classes"] == ["cat", "dog"]
    assert left == {"train/cat/notes.txt": "no picture by its name"} and report["found"] == 13
    records = _records(tmp_path, splits=("train", "val"))
    assert records["val/dog/1.PNG"][0]["label"] == 1 and records["val/dog/1.PNG"][1] == "val"


@pytest.mark.parametrize("stored", ["array_record", "tfrecord"])
def test_a_dataset_of_tfds(tmp_path, stored):
    from mae_pp_jax.data.builders.digits_hashtags import digits_hashtags_dataset_builder as digits

    builder = digits.Builder(data_dir=str(tmp_path / "other"))
    builder.download_and_prepare(file_format=stored)
    folder = _build(tmp_path, f"--from={builder.data_dir}", "--min_side=8", name="again")
    report, left = _report(folder)
    assert report["written"] == {"test": 360, "train": 1437} and left == {}
    assert report["classes"] == list(digits.CLASS_NAMES)
    ours = source.open_source(source.DataConfig(name="again", data_dir=str(tmp_path / "tfds")), "train")
    assert fields.names(ours, "label") == digits.CLASS_NAMES
    if stored == "array_record":
        theirs = source.open_source(source.DataConfig(data_dir=str(tmp_path / "other")), "train")
        assert ours[5]["label"] == theirs[5]["label"] and len(ours) == len(theirs)
        assert ours[5]["hashtags"] == tuple(fields.names(theirs, "hashtags")[t] for t in theirs[5]["hashtags"])


def test_a_built_dataset_is_an_input_too(tmp_path):
    """Tags with spaces stay whole, also where an image has only one."""
    root = tmp_path / "one"
    root.mkdir()
    tags = {"a.png": ["ice cream"], "b.png": ["ice cream", "New York"], "c.png": []}
    for i, name in enumerate(tags):
        (root / name).write_bytes(_encoded(i))
    rows = [json.dumps(dict(file=name, tags=found)) for name, found in tags.items()]
    (root / "metadata.jsonl").write_text("\n".join(rows))
    first = _build(tmp_path, f"--from={root}", "--splits=train:1", name="first")
    for source_name, where in ((str(first), []), ("first", [f"--from_data_dir={tmp_path}/tfds"])):
        name = "second" if where else "third"
        folder = _build(tmp_path, f"--from={source_name}", *where, name=name)
        assert _report(folder)[0]["written"] == {"train": 3}
        found = _records(tmp_path, name).values()
        assert sorted([t.decode() for t in record["hashtags"]] for record, _ in found) == sorted(tags.values())


def test_record_files_with_names_of_their_own_and_a_cut(tmp_path):
    import struct

    from tensorflow_datasets.proto import tf_example_pb2

    def framed(record):
        return struct.pack("<Q", len(record)) + bytes(4) + record + bytes(4)

    records = []
    for i in range(3):
        example = tf_example_pb2.Example()
        example.features.feature["pic"].bytes_list.value.append(_encoded(i))
        example.features.feature["words"].bytes_list.value.append(f"one two{i}".encode())
        records.append(framed(example.SerializeToString()))
    for folder, content in (("one", b"".join(records)[:-9]), ("two", records[2])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "some.tfrecord-00000-of-00001").write_bytes(content)
    options = ["--columns=image:pic,hashtags:words", "--splits=train:1"]
    report, left = _report(_build(tmp_path, f"--from={tmp_path}/*/some.tfrecord*", *options))
    assert report["written"] == {"train": 3} and list(left.values()) == ["damaged entry"]
    found = _records(tmp_path).values()
    assert sorted(tuple(t.decode() for t in record["hashtags"]) for record, _ in found) == [
        ("one", "two0"),
        ("one", "two1"),
        ("one", "two2"),
    ]


def test_encoding_and_sides(tmp_path):
    root = tmp_path / "classes" / "c"
    root.mkdir(parents=True)
    for i, extension in enumerate((".jpg", ".png", ".webp")):
        (root / f"{i}{extension}").write_bytes(_encoded(i, extension, height=60, width=120))
    (root / "3.png").write_bytes(_encoded(3, height=20, width=30))
    kinds = {}
    for name, options in {
        "keep": [],
        "small": ["--max_side=40"],
        "jpeg": ["--encode=jpeg:80", "--max_side=40"],
        "png": ["--encode=png"],
    }.items():
        _build(tmp_path, f"--from={root.parent}", *options, name=name)
        builder = tfds.builder(name, data_dir=str(tmp_path / "tfds"))
        raw = {"image": tfds.decode.SkipDecoding()}
        for split in builder.info.splits:
            for record in builder.as_data_source(split, decoders=raw):
                shape = decode.decode(record["image"]).shape[:2]
                kinds[name, record["id"].decode()[2]] = record["image"][:4], shape
    jpeg, png = b"\xff\xd8\xff\xe0", b"\x89PNG"
    assert [kinds["keep", n][0] for n in "0123"] == [jpeg, png, png, png]
    assert [kinds["small", n][0] for n in "0123"] == [jpeg, png, png, png]
    assert {kinds["jpeg", n][0] for n in "0123"} == {jpeg} and {kinds["png", n][0] for n in "0123"} == {png}
    assert [kinds["small", n][1] for n in "0123"] == [(20, 40)] * 3 + [(20, 30)]
    assert kinds["keep", "0"][1] == kinds["png", "0"][1] == (60, 120)


@pytest.mark.parametrize("way", ["jpeg:95", "restarts"])
def test_restart_markers_let_parts_be_decoded_alone(tmp_path, way):
    if way == "restarts" and not shutil.which("jpegtran"):
        pytest.skip("jpegtran (Debian: libjpeg-turbo-progs) is not installed")
    root = tmp_path / "classes" / "c"
    root.mkdir(parents=True)
    files = {f"{i}.jpg": encode(_picture(i, height=200, width=640), "jpeg", **how) for i, how in enumerate(HOW)}
    files["damaged.jpg"] = files["0.jpg"][:-200] + bytes(100) + files["0.jpg"][-100:]
    files["p.png"] = _encoded(9)
    for name, content in files.items():
        (root / name).write_bytes(content)
    _build(tmp_path, f"--from={root.parent}", f"--encode={way}")
    builder, stored = tfds.builder("photos", data_dir=str(tmp_path / "tfds")), {}
    for split in builder.info.splits:
        for record in builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}):
            stored[record["id"].decode().removeprefix("c/")] = record["image"]
    assert stored.keys() == files.keys()
    for name, content in stored.items():
        if way == "restarts":
            np.testing.assert_array_equal(decode.decode(content), decode.decode(files[name]))
        if name[0].isdigit():
            jpeg = decode.read_jpeg(content)
            (_, top, left) = jpeg_restarts.cut(content, jpeg.layout, (100, 300, 50, 50))
            assert top in range(64, 100) and left in range(150, 300)
    if way == "restarts":
        assert stored["p.png"] == files["p.png"]


# Ways to store a JPEG
HOW = [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 100, "optimize": True}, {"restart_marker_rows": 3}]


def test_restart_markers_need_jpegtran(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    _build(tmp_path, f"--from={photos}", "--encode=restarts", expect=2)
    assert "--encode=restarts: needs the program jpegtran" in capsys.readouterr().err


def test_families_do_not_part(tmp_path):
    root = tmp_path / "art"
    root.mkdir()
    rows = []
    for i in range(120):
        family = i // 3
        name = f"{i}.png"
        picture = _picture(1000 + family if i % 3 else 5000 + i)  # one of three has other pixels than its siblings
        (root / name).write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        letters = "".join("abcdefghij"[int(digit)] for digit in str(family))
        title = f"The {letters} ({i}:00) no. {i}" if i % 3 != 1 else f"alone{chr(97 + i % 26)}{letters}"
        rows.append(dict(file=name, title=title))
    rows += [dict(file=f"big{i}.png", title="big") for i in range(40)]
    for i in range(40):
        (root / f"big{i}.png").write_bytes(_encoded(9000 + i))
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--split_by=title,looks", "--splits=train:0.5,test:0.5"]
    folder = _build(tmp_path, f"--from={root}", *options)
    split = {name: where for name, (_, where) in _records(tmp_path).items()}
    together = [{split[f"{3 * f + k}.png"] for k in range(3)} for f in range(40)]
    assert all(len(where) == 1 for where in together)
    counts = collections.Counter(next(iter(where)) for where in together)
    assert min(counts.values()) > 10
    assert {split[f"big{i}.png"] for i in range(40)} == {"train"}
    description = json.loads((folder / "dataset_info.json").read_text())["description"]
    assert "family" in description and "title or looks" in description


def test_same_bytes_again_on_other_threads_and_after_a_kill(tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    for t in range(8):
        _tar(tars / f"{t}.tar", [(f"{i}.png", _encoded(100 * t + i, height=400, width=400)) for i in range(8)])
    options = [f"--from={tars}", "--encode=jpeg:90", "--max_side=300", "--split_by=looks"]
    whole = _bytes(_build(tmp_path / "one", *options, "--workers=1"))
    assert whole == _bytes(_build(tmp_path / "two", *options, "--workers=4"))

    base = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "mae_pp_jax",
        "data",
        "build",
        "--name=photos",
        f"--data_dir={base}/tfds",
        *options,
    ]
    killed = 0
    for waits_for in ("scan-*.npz", "piece-*.json"):
        process = subprocess.Popen(command, cwd=pathlib.Path(__file__).parents[2], stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(base.glob(f"tfds/photos/incomplete*/{waits_for}")):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        assert not (base / "tfds" / "photos" / "1.0.0").exists() or killed == 0
    assert killed, "both builds were done before they could be killed: make the input larger"
    shutil.copytree(tars, tmp_path / "copy")
    options[0] = f"--from={tmp_path / 'copy'}"  # where the input stands does not matter
    folder = _build(base, *options)
    assert _bytes(folder) == whole
    assert sorted(p.name for p in folder.parent.iterdir()) == ["1.0.0"]


def test_building_again_says_so_and_another_input_is_refused(photos, tmp_path, capsys):
    folder = _build(tmp_path, f"--from={photos}")
    before = _bytes(folder)
    _build(tmp_path, f"--from={photos}")
    assert _bytes(folder) == before
    capsys.readouterr()
    _build(tmp_path, f"--from={photos}", "--encode=png", expect=2)
    assert "other input or options" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from=/nowhere/at/all"], "nothing is at /nowhere/at/all"),
        (["--sidecar=none.jsonl"], "cannot read none.jsonl"),
        (["--sidecar=cut.jpg"], "must end in .jsonl"),
        (["--columns=hashtag:x"], "did you mean 'hashtags'"),
        (["--columns=caption"], "is not MEANING:COLUMN"),
        (["--splits=train:0.9,test:0.2"], "shares that sum to 1"),
        (["--splits=train"], "shares that sum to 1"),
        (["--encode=gif"], "is not keep, restarts, png or jpeg"),
        (["--encode=jpeg:0"], "quality of 1 to 100"),
        (["--max_side=4"], "less than --min_side"),
        (["--min_side=999"], "holds no usable image (too small"),
        (["--version=1"], "three numbers"),
        (["--name=My Photos"], "lower-case"),
        (["--runner=NoSuchRunner"], "--runner: NoSuchRunner"),
        (["--workers=-1"], "--workers"),
    ],
)
def test_wrong_options_are_one_line(photos, tmp_path, capsys, options, words):
    base = [] if options[0].startswith("--from") else [f"--from={photos}"]
    _build(tmp_path, *base, *options, expect=2)
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "tfds" / "photos" / "1.0.0").exists()


def _some(root, number=4, tag="dog", sub=""):
    (root / sub).mkdir(parents=True, exist_ok=True)
    for i in range(number):
        (root / sub / f"{i}.png").write_bytes(_encoded(i))
    rows = [json.dumps(dict(file=f"{sub}{i}.png", hashtags=[tag], concept=f"c{i}")) for i in range(number)]
    (root / "metadata.jsonl").write_text("\n".join(rows))
    return root


def test_a_changed_input_of_the_same_size_and_time_is_another_one(tmp_path, capsys):
    root = _some(tmp_path / "in", tag="dgo")
    _build(tmp_path, f"--from={root}")
    for name, content in {
        "metadata.jsonl": (root / "metadata.jsonl").read_text().replace("dgo", "dog"),
        "0.png": None,
    }.items():
        path = root / name
        before, times = path.read_bytes(), path.stat()
        changed = content.encode() if content else before[:-20] + bytes(4) + before[-16:]
        path.write_bytes(changed)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert len(changed) == len(before)
        capsys.readouterr()
        _build(tmp_path, f"--from={root}", expect=2)
        assert "(content of the input)" in capsys.readouterr().err
        path.write_bytes(before)  # at another time
        _build(tmp_path, f"--from={root}/")
    shutil.copytree(root, tmp_path / "moved", copy_function=shutil.copy)
    _build(tmp_path, f"--from={tmp_path / 'moved'}")


def test_a_killed_build_does_not_go_on_with_changed_input(tmp_path, monkeypatch):
    """Half of the input is written when it changes; nothing of that half remains."""
    root = _some(tmp_path / "in", tag="dgo")
    monkeypatch.setattr(sidecar, "_ROWS", 2)

    class Killed(BaseException):
        pass

    def stop(request, write, *rest):
        write.done(1).unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(build, "_assemble", stop)
        with pytest.raises(Killed):
            _build(tmp_path, f"--from={root}")
    rows = (root / "metadata.jsonl").read_text()
    (root / "metadata.jsonl").write_text(rows.replace("dgo", "dog"))
    _build(tmp_path, f"--from={root}")
    tags = {tag for record, _ in _records(tmp_path).values() for tag in record["hashtags"]}
    assert tags == {b"dog"}


@pytest.mark.parametrize(
    ("option", "right", "words"),
    [
        (
            "--split_by=concpt",
            "--split_by=concept",
            "--split_by: the input has no column 'concpt'; its columns: file, ha",
        ),
        (
            "--columns=hashtags:tagz",
            "--columns=hashtags:concept",
            "no column 'tagz'; its columns: file, hashtags, concept",
        ),
        ("--columns=label:Concept", "--columns=label:concept", "no column 'Concept'"),
    ],
)
def test_columns_that_are_not_there_are_named(tmp_path, capsys, option, right, words):
    root = _some(tmp_path / "in")
    _build(tmp_path, f"--from={root}", option, expect=2)
    assert words in capsys.readouterr().err
    assert not [path for path in (tmp_path / "tfds" / "photos").iterdir() if path.is_dir()]
    _build(tmp_path, f"--from={root}", right)


def test_a_path_that_exists_is_no_pattern(tmp_path):
    folder = tmp_path / "shards [v1], a=1*"
    folder.mkdir()
    members = [(f"{i}.png", _encoded(i)) for i in range(3)]
    for name in ("a.tar", "b [2].TAR"):
        _tar(folder / name, members)
    (folder / "index.txt").write_text("x")
    found = {}
    for name, source_name in dict(one=folder / "b [2].TAR", all=folder, some=f"{folder}/[ab]*.[tT]*").items():
        report, left = _report(_build(tmp_path, f"--from={source_name}", name=name))
        found[name] = report["found"], left
    assert found == {"one": (3, {}), "all": (7, {"index.txt": "other kind of file"}), "some": (6, {})}


def test_training_and_building_read_the_same_files(tmp_path):
    root, big = tmp_path / "in", tmp_path / "big"
    for label in ("bus", "train", "tram"):
        _some(big / label)
        (big / label / "metadata.jsonl").unlink()
    root.mkdir()
    for label in ("train", "tram"):
        (root / label).symlink_to(big / label)
    (root / "bus" / "2023").mkdir(parents=True)
    for i in range(3):
        (root / "bus" / "2023" / f"{i}.jfif").write_bytes(_encoded(i, ".jpg"))
    (root / "bus" / "loop").symlink_to(root)
    os.link(big / "bus" / "0.png", os.fsencode(root) + b"/bus/caf\xe9.png")
    report, left = _report(_build(tmp_path, f"--from={root}"))
    assert report["classes"] == ["bus", "train", "tram"] and left == {"bus/loop": "link in a loop"}
    config = source.DataConfig(name=str(root))
    ours = [source.open_source(config, split) for split in ("train", "test")]
    assert {os.path.relpath(s.describe(i), root) for s in ours for i in range(len(s))} == _records(tmp_path).keys()
