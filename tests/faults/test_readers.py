"""Random folders, sidecars and tars: what is found is used or left out with a reason, labels are right, no trace."""

import csv
import io
import json
import os
import pathlib
import tarfile
import tempfile
from unittest import mock

import cv2
import hypothesis
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from hypothesis import strategies as st

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data import source, tree
from mae_pp_jax.data import text as text_lib
from mae_pp_jax.data.building import build, encoding, inputs, runner, splitting

PICTURE = cv2.imencode(".png", np.arange(768, dtype=np.uint8).reshape(16, 16, 3))[1].tobytes()
ODD = st.text(st.characters(exclude_characters="\0/\\", exclude_categories=("Cs",)), min_size=1, max_size=4).filter(
    lambda text: text.strip(".")
)
FOLDER = (
    st.sampled_from(["cat", "dog", "train", "test", "val", ".git", "a [1]", "café", "cafe\u0301", "__MACOSX", "x=1,y"])
    | ODD
)
FILE = st.sampled_from(["0.png", "1.PNG", "2.jfif", "n.txt", ".x.png", "._0.png", "none", "a.b.png"]) | ODD.map(
    "{}.png".format
)


def examples(function):
    """The test as it stands, with 25 examples, and as a slow one with 2,000; the same ones in every run."""
    return pytest.mark.parametrize("number", [25, pytest.param(2000, marks=pytest.mark.slow)])(function)


def check(number, property, *strategies):
    """Calls `property` with a new folder and so many drawn arguments."""

    def once(arguments):
        with tempfile.TemporaryDirectory() as folder:
            property(pathlib.Path(folder), *arguments)

    settings = hypothesis.settings(max_examples=number, derandomize=True, deadline=None, database=None)
    settings(hypothesis.given(st.tuples(*strategies))(once))()


def _here(what, step, parts, **_):
    """Carries out a step without Beam, which the other tests of `data build` run."""
    for numbered in enumerate(parts):
        step(numbered)


def _build(tmp, path, **options):
    """The report, name → record, name → line of what is left out; None where nothing can be used."""
    try:
        request = build.Request(
            name="a",
            version="1.0.0",
            data_dir=str(tmp / "tfds"),
            source=str(path),
            reader=inputs.open_input(str(path), sidecar_file="", columns="", input_data_dir="", **options),
            splitting=splitting.Splitting.parse("", "", 0),
            encoding=encoding.Encoding.parse("keep", max_side=0, min_side=16),
        )
        with mock.patch.object(runner, "run", _here):
            report = build.build(request)
    except UserError:  # one line, as `errors.line` makes of any
        return None
    builder = tfds.builder_from_directory(request.folder)
    written = {r["id"].decode(): r for split in builder.info.splits for r in builder.as_data_source(split)}
    left = [json.loads(line) for line in (request.folder / "left_out.jsonl").read_text().splitlines()]
    assert report["found"] == sum(report["written"].values()) + len(left) == len(written) + len(left)
    assert sum(report["left_out"].values()) == len(left) and all(line["reason"] for line in left)
    names = builder.info.features["label"].names if "label" in builder.info.features else ()
    for record in written.values():
        record["class"] = names[record["label"]] if record.get("label", -1) >= 0 else None
    return report, written, left


@examples
def test_folders(number):
    def property(tmp, files, links):
        root = tmp / "root"
        root.mkdir()
        expected = set()
        for *folders, name in files:
            path = root.joinpath(*folders, name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(PICTURE)
            except OSError:  # a file where a folder should be, or a name that is too long
                continue
            expected.add(str(path.relative_to(root)))
        for number, (folder, target) in enumerate(links):
            path = root / folder / f"link{number}.png"
            if path.parent.is_dir():
                path.symlink_to({"loop": root, "nothing": root / "gone", "file": tmp / "out.png"}[target])
                expected.add(str(path.relative_to(root)))
        (tmp / "out.png").write_bytes(PICTURE)
        if (result := _build(tmp, root)) is None:
            return
        report, written, left = result
        assert written.keys() | {line["input"] for line in left} == expected
        splits = set(report["written"]) & {"val", "validation"} or any(n.count("/") > 1 for n in written)
        for name, record in written.items():
            places = [tree.class_name(part) for part in name.split("/")[:-1]]
            assert record["class"] in places[: 2 if splits else 1]
        for split in ("train", "test"):
            try:
                ours = source.open_source(source.DataConfig(name=str(root)), split)
            except UserError:
                continue
            assert {os.path.relpath(ours.describe(i), root) for i in range(len(ours))} <= written.keys()

    files = st.lists(
        st.lists(FOLDER, max_size=3).flatmap(lambda f: FILE.map(lambda n: [*f, n])), min_size=1, max_size=12
    )
    links = st.lists(st.tuples(FOLDER, st.sampled_from(["loop", "nothing", "file"])), max_size=3)
    check(number, property, files, links)


CELL = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)
CELL |= st.sampled_from(['a "b" c', '12"', '"', "x,y", "x\ty", "two\nlines", "cr\rhere", " ", "#tag #two"])


@examples
def test_sidecars(number):
    def property(tmp, cells, comma, end, quoting, stray):
        root = tmp / "root"
        root.mkdir()
        text = io.StringIO()
        writer = csv.writer(text, delimiter=comma, lineterminator=end, quoting=quoting)
        writer.writerow(["file", "other"])
        for i, cell in enumerate(cells):
            (root / f"{i}.png").write_bytes(PICTURE)
            writer.writerow([f"{i}.png", cell])
        (root / "spare.png").write_bytes(PICTURE)
        whole = text.getvalue()
        if stray is not None:  # a quote that does not close, in a row of its own
            lines = whole.split(end)
            lines.insert(1 + stray % len(lines), f'lost.png{comma}"never')
            whole = end.join(lines)
        (root / "metadata.csv").write_bytes(whole.encode())
        reader = inputs.open_input(str(root), sidecar_file="", columns="", input_data_dir="")
        if comma == "\t":
            (root / "metadata.csv").rename(root / "metadata.tsv")
            reader = inputs.open_input(str(root), sidecar_file="metadata.tsv", columns="", input_data_dir="")
        items = [item for part in reader.parts() for item in reader.items(part)]
        if stray is None:
            rows = [row for row in csv.reader(io.StringIO(whole, newline=""), delimiter=comma) if "".join(row).strip()]
            expected = [(row[0], text_lib.cell(row[1])) if len(row) == 2 else None for row in rows[1:]]
            assert [(i.key, i.columns["other"]) if i.columns else None for i in items] == expected
        elif not any(set(cell) & set('\n\r"') for cell in cells):
            assert {f"{i}.png" for i in range(len(cells))} < {item.key for item in items}
            assert len(items) == len(cells) + 1
        if comma == "," and (result := _build(tmp, root)):
            _, written, left = result
            assert {f"{i}.png" for i in range(len(cells))} | {"spare.png"} <= written.keys() | {
                e["input"] for e in left
            }

    quoting = st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    ends = st.sampled_from(["\n", "\r\n", "\r"])
    strays = st.none() | st.integers(0, 9)
    check(number, property, st.lists(CELL, min_size=1, max_size=6), st.sampled_from([",", "\t"]), ends, quoting, strays)


@examples
def test_sidecars_of_any_bytes(number):
    def property(tmp, name, content):
        root = tmp / "root"
        root.mkdir()
        (root / "0.png").write_bytes(PICTURE)
        (root / name).write_bytes(content)
        _build(tmp, root)

    piece = st.sampled_from(
        [b"file,tags\n", b"0.png", b'{"file": "0.png"}', b'"', b",", b"\n", b"\r", b"[", b"NaN", b"\xff"]
    )
    content = st.lists(piece | st.binary(max_size=4), max_size=20).map(b"".join)
    check(number, property, st.sampled_from(["metadata.csv", "metadata.jsonl"]), content)


PIXELS = st.sampled_from([PICTURE, b"no picture", None, "0.png", "gone.png", " "])
VALUE = st.none() | CELL | st.lists(CELL, max_size=2) | st.integers(-2, 3) | st.floats(width=32)


@examples
def test_parquet(number):
    def property(tmp, rows, kind, group, flips):
        (tmp / "0.png").write_bytes(PICTURE)
        pixels, values = zip(*rows)
        bytes_of = [p if isinstance(p, bytes) else None for p in pixels]
        paths = [p if isinstance(p, str) else None for p in pixels]
        images = [dict(bytes=b, path=p) for b, p in zip(bytes_of, paths)] if kind == "struct" else paths
        images = bytes_of if kind == "bytes" else images
        values = [v for v in values if type(v) is type(values[0])] + [None] * len(rows)
        table = pa.table(dict(image=images, label=values[: len(rows)], tags=values[: len(rows)]))
        path = tmp / "train.parquet"
        pq.write_table(table, path, row_group_size=group)
        if flips:
            content = bytearray(path.read_bytes())
            for place, value in flips:
                content[int(place * (len(content) - 1))] ^= value
            path.write_bytes(content)
        if (result := _build(tmp, path)) is None or flips:
            return
        _, written, left = result
        assert len(written) + len(left) == len(rows)
        good = [i for i, p in enumerate(images) if p == PICTURE or isinstance(p, dict) and p["bytes"] == PICTURE]
        assert {f"train.parquet/{i}" for i in good} <= written.keys() | {e["input"] for e in left}
        for i in good:
            record, value = written.get(f"train.parquet/{i}"), values[i]
            assert record is None or record["class"] == (text_lib.name(value) or None)

    rows = st.lists(st.tuples(PIXELS, VALUE), min_size=1, max_size=8)
    kinds = st.sampled_from(["struct", "bytes", "names"])
    flips = st.just([]) | st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3)
    check(number, property, rows, kinds, st.integers(1, 4), flips)


STEM = st.sampled_from(["0", "1", "d/2", "./3", "4.v", "dir.1/5", "._0", "__MACOSX/0", "é", "w\\6"])
SUFFIX = st.sampled_from(["png", "PNG", "json", "txt", "cls", "seg.png", "npy", "v2.json"])
CONTENT = {"png": PICTURE, "json": b'["tag"]', "txt": b"a #word", "cls": b"c", "npy": b"x"}


@examples
def test_tars(number):
    def property(tmp, members, mode, cut):
        path = tmp / "a.tar"
        names = []
        with tarfile.open(path, mode) as tar:
            for stem, suffix, kind in members:
                info = tarfile.TarInfo(f"{stem}.{suffix}")
                content = CONTENT[suffix.lower().rpartition(".")[2]]
                if kind == "file":
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                else:
                    info.type, info.linkname = tarfile.LNKTYPE, kind
                    tar.addfile(info)
                names.append(info.name)
            mark = tar.offset
        if cut is not None:
            content = path.read_bytes()
            path.write_bytes(content[: int(cut * (mark if mode == "w" else len(content) - 1))])
        if (result := _build(tmp, path)) is None:
            return
        _, written, left = result
        told = " ".join(f"{line['input']} {line['detail']}" for line in left)
        if cut is not None:
            assert "what follows in this tar is lost" in told
            return
        for name in names:
            plain = os.path.normpath(name.replace("\\", "/"))
            folder, base = os.path.split(plain)
            key = os.path.join(folder, base.split(".")[0])
            assert f"a.tar/{key}" in written or os.path.basename(plain) in told or f"a.tar/{key} " in told
        for key, record in written.items():
            assert [t.decode() for t in record.get("hashtags", ())] in ([], ["tag"], ["word"], ["tag", "word"])

    member = st.tuples(STEM, SUFFIX, st.sampled_from(["file"] * 5 + ["0.png", "gone.png"]))
    cuts = st.none() | st.floats(0, 1)  # the share that is kept of what stands before the end mark
    check(number, property, st.lists(member, min_size=1, max_size=12), st.sampled_from(["w", "w:gz"]), cuts)
