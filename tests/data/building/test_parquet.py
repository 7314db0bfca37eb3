"""Parquet files as Hugging Face, pandas and others write them: all rows are read, or told with the reason."""

import collections
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data.building import inputs, items, parquet
from tests.data.pictures import encode, noise

PICTURES = [encode(noise(i, 16, 16), "png") for i in range(12)]


def _open(source, columns="", sidecar=""):
    return inputs.open_input(str(source), sidecar_file=sidecar, columns=columns, input_data_dir="")


def _read(reader):
    """Key → item, in order; and the reasons of what cannot be used and of other files."""
    found = [item for part in reader.parts() for item in reader.items(part)]
    assert len({item.key for item in found}) == len(found)
    left = dict(reader.others())
    for item in found:
        left.pop(item.key, None)
        try:
            item.read()
        except items.LeftOut as error:
            left[item.key] = error.reason
    return {item.key: item for item in found}, left


def _features(schema, **features):
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _hub(numbers, **more):
    """A table as Hugging Face's datasets writes it."""
    images = [dict(bytes=PICTURES[i], path=f"{i}.png") for i in numbers]
    table = pa.table(dict(image=images, label=[i % 3 - 1 for i in numbers], **more))
    label = {"names": ["zebra", "ant"], "_type": "ClassLabel"}
    return table.cast(_features(table.schema, image={"_type": "Image"}, label=label))


def test_a_repository_of_hugging_face(tmp_path):
    (tmp_path / "data").mkdir()
    for name, numbers in {"train-00000-of-00002": range(4), "train-00001-of-00002": range(4, 7)}.items():
        tags = [["a", "b #c"], None, []][: len(numbers)] + [["d"]] * (len(numbers) - 3)
        table = _hub(numbers, caption=[f"{i} &amp; #word" for i in numbers], tags=tags)
        pq.write_table(table, tmp_path / "data" / f"{name}-0a1b.parquet", row_group_size=2)
    pq.write_table(_hub(range(7, 9)), tmp_path / "data" / "validation-00000-of-00001.parquet")
    pq.write_table(_hub(range(9, 12)), tmp_path / "data" / "extra-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("x")
    reader = _open(tmp_path)
    found, left = _read(reader)
    assert left == {"README.md": "no picture by its name"} and reader.class_names == ("zebra", "ant")
    assert [item.read() for item in found.values()] == [PICTURES[i] for i in (9, 10, 11, *range(9))]
    assert collections.Counter(item.split for item in found.values()) == dict(train=7, validation=2, extra=3)
    first = [item for item in found.values() if item.split == "train"]
    assert [item.label for item in first] == [None, "zebra", "ant", None, "zebra", "ant", None]
    assert first[0].caption == "0 & #word" and first[0].hashtags == ("a", "b", "c", "word")
    assert first[5].hashtags == ("word",) and list(found)[3] == "data/train-00000-of-00002-0a1b.parquet/0"


def test_columns_of_other_names_and_kinds(tmp_path):
    numbers = range(6)
    table = pa.table(
        dict(
            img=pa.array([PICTURES[i] for i in numbers[:-1]] + [None], pa.large_binary()),
            path=[f"elsewhere/{i}" for i in numbers],
            mask=[b"x" * 1000] * 6,
            embedding=pa.array([[0.5] * 8] * 6, pa.list_(pa.float32(), 8)),
            kind=pa.array(["a ", None, "b", "a", "", "b"]).dictionary_encode(),
            at=pa.array([2**62] * 6, pa.timestamp("ns")),
        )
    )
    pq.write_table(table.cast(_features(table.schema, img={"_type": "Image"})), tmp_path / "a.parquet.gzip")
    found, left = _read(_open(tmp_path / "a.parquet.gzip", "label:kind"))
    assert left == {"a.parquet.gzip/5": "no image"}
    assert [item.label for item in found.values()] == ["a", None, "b", "a", None, "b"]
    assert set(found["a.parquet.gzip/0"].columns) == {"path", "kind", "at"}
    assert found["a.parquet.gzip/0"].split is None and found["a.parquet.gzip/1"].read() == PICTURES[1]
    with pytest.raises(UserError, match="no column pixels, its columns are img, path, .*--columns=image:COLUMN"):
        _open(tmp_path / "a.parquet.gzip", "image:pixels")


def test_two_columns_of_one_name_are_refused(tmp_path):
    arrays = [pa.array([PICTURES[0]]), pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(arrays, names=["image", "label", "label"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet has 2 columns label; rename all but one"):
        _open(tmp_path)


@pytest.mark.parametrize("name, sidecar", [("metadata.parquet", ""), ("train.parquet", "train.parquet")])
def test_a_table_beside_pictures(tmp_path, name, sidecar):
    (tmp_path / "sub").mkdir()
    for i in range(4):
        (tmp_path / "sub" / f"{i}.png").write_bytes(PICTURES[i])
    names = ["sub/0.png", "sub\\1.png", str(tmp_path / "sub" / "2.png"), "gone.png", "../x.png", None]
    table = dict(file_name=names, hashtags=["#a #b", None, "c,d", "", "", ""], label=[1.0, float("nan"), 2.0, 1, 1, 1])
    pq.write_table(pa.table(table), tmp_path / name)
    found, left = _read(_open(tmp_path, sidecar=sidecar))
    assert left == {
        "gone.png": "missing",
        "../x.png": "outside the folder",
        f"{name}/5": "no image",
        "sub/3.png": "in no row of the sidecar",
    }
    assert [(i.hashtags, i.label, i.split) for i in found.values()][:3] == [
        (("a", "b"), "1", None),
        (None, None, None),
        (("c", "d"), "2", None),
    ]


def test_folders_that_name_values_and_splits(tmp_path):
    for i, folder in enumerate(("test/label=ice%20cream", "test/label=__HIVE_DEFAULT_PARTITION__", "train/label=tea")):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table(dict(image=[PICTURES[i]])), tmp_path / folder / "0.parquet")
    found, left = _read(_open(f"{tmp_path}/*/*/*.parquet"))
    assert not left
    assert {(item.label, item.split) for item in found.values()} == {
        ("ice cream", "test"),
        (None, "test"),
        ("tea", "train"),
    }


def test_damage_costs_what_it_hits_and_is_counted(tmp_path):
    pq.write_table(_hub(range(12)), tmp_path / "a.parquet", row_group_size=4, compression="none")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    middle = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0)
    start = middle.dictionary_page_offset or middle.data_page_offset
    content[start : start + 20] = b"\xff" * 20
    (tmp_path / "a.parquet").write_bytes(content)
    (tmp_path / "cut.parquet").write_bytes(content[:3000])
    (tmp_path / "empty.parquet").write_bytes(b"")
    pq.write_table(_hub([]), tmp_path / "none.parquet")
    found, left = _read(_open(tmp_path))
    lost = [*(f"a.parquet/{i}" for i in range(4, 8)), "cut.parquet", "empty.parquet"]
    assert left == dict.fromkeys(lost, "damaged entry")
    assert [found[f"a.parquet/{i}"].read() for i in (0, 3, 8, 11)] == [PICTURES[i] for i in (0, 3, 8, 11)]
    assert "what is in this file is lost" in found["cut.parquet"].read.detail


def test_parts_are_whole_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_PART_ROWS", 4)
    pq.write_table(_hub(range(11)), tmp_path / "a.parquet", row_group_size=3)
    parts = _open(tmp_path / "a.parquet").parts()
    assert [(part.start, part.stop, part.first) for part in parts] == [(0, 2, 0), (2, 4, 6)]
    assert list(_read(_open(tmp_path / "a.parquet"))[0]) == [f"a.parquet/{i}" for i in range(11)]


def test_pictures_come_before_stray_tables(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(PICTURES[0])
    pq.write_table(_hub(range(3)), tmp_path / "embeddings.parquet")
    found, left = _read(_open(tmp_path))
    assert list(found) == ["cat/0.png"] and left == {"embeddings.parquet": "no picture by its name"}
