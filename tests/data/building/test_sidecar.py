"""Sidecars as people's programs write them: every row is read, or named with what is wrong."""

import csv
import json
import unicodedata

import pytest

from mae_pp_jax.core.errors import UserError
from mae_pp_jax.data.building import items, sidecar


def _reader(root, text, name="metadata.csv", columns="", pictures=()):
    for picture in pictures:
        (root / picture).parent.mkdir(parents=True, exist_ok=True)
        (root / picture).write_bytes(picture.encode())
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    (root / name).write_bytes(content)
    return sidecar.SidecarReader(str(root), str(root / name), items.Columns.parse(columns))


def _read(reader):
    """(key, caption or what is wrong) of every item."""
    found = []
    for part in reader.parts():
        for item in reader.items(part):
            fault = item.read.detail if isinstance(item.read, items.Broken) else None
            found.append((item.key, fault or item.caption))
    return found


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(("name", "comma"), [("m.csv", ","), ("m.csv", ";"), ("m.csv", "\t"), ("m.tsv", "\t")])
def test_line_ends_marks_and_quotes(tmp_path, end, mark, name, comma):
    rows = [
        ["file", "text"],
        ["0.png", 'a 12" record'],
        ["1.png", '"two, cells; 1"'],
        ["2.png", f'"two{end}lines"'],
        ["3.png", ""],
    ]
    text = mark + end.join(comma.join(row) for row in rows)
    assert _read(_reader(tmp_path, text, name)) == [
        ("0.png", 'a 12" record'),
        ("1.png", "two, cells; 1"),
        ("2.png", f"two{end}lines"),
        ("3.png", None),
    ]


@pytest.mark.parametrize("number", [4, 999, 1000, 1001, 2500])
def test_parts_are_cut_where_rows_end(tmp_path, number):
    rows = [(f"{i}.png", f'line{i}\nof "{i}"' if i % 3 else f'{i}"') for i in range(number)]
    text = "file,caption\n" + "".join(
        f'{n},"{c.replace(chr(34), chr(34) * 2)}"\n' if "\n" in c else f"{n},{c}\n" for n, c in rows
    )
    reader = _reader(tmp_path, text)
    assert _read(reader) == rows and len(reader.parts()) == -(-number // 1000)
    with open(tmp_path / "metadata.csv", newline="") as file:
        assert [tuple(row) for row in csv.reader(file)][1:] == rows


@pytest.mark.parametrize("last", ['3.png,"never closes', '"3.png,never closes'])
def test_a_quote_that_does_not_close_takes_its_own_row_alone(tmp_path, last):
    plain = [f"{i}.png,text {i}" for i in range(1500)]
    for below in (False, True):
        lines = [*plain[:3], last, *plain[4:]]
        lines[7:8] = ['7.png,"another'] if below else [plain[7]]
        found = _read(_reader(tmp_path, "\n".join(["file,text", *lines])))
        wrong = ["metadata.csv, row 4", "metadata.csv, row 8"][: 1 + below]
        assert [key for key, _ in found if "row" in key] == wrong
        assert {f"{i}.png" for i in range(1500) if i not in (3, 7)} <= {key for key, _ in found}
        assert len(found) == 1500


def test_header_cells_may_have_spaces_and_cells_may_be_long(tmp_path):
    long = "x" * 300_000
    found = _read(_reader(tmp_path, f'text, file\n"a, b", "0.png"\n{long}, 1.png\n'))
    assert found == [("0.png", "a, b"), ("1.png", long)]


@pytest.mark.parametrize("first, comma", [("sep=;\n", ";"), ("\ufeffsep=,\r\n", ","), ("", "|"), ('"sep=\t"\n', "\t")])
def test_separators_that_spreadsheets_write(tmp_path, first, comma):
    found = _read(_reader(tmp_path, f"{first}file{comma}text\n0.png{comma}a b\n"))
    assert found == [("0.png", "a b")]


def test_two_columns_of_one_name_are_refused_where_one_would_be_lost(tmp_path):
    with pytest.raises(UserError, match="has 2 columns text; rename all but one"):
        _reader(tmp_path, "file,text,text\n0.png,a,b\n").parts()
    assert _read(_reader(tmp_path, "file,,,x,x,text\n0.png,1,2,3,4,b\n")) == [("0.png", "b")]


def test_what_a_parser_raises_names_the_row(tmp_path):
    rows = [
        '{"file": "0.png", "text": "a"}',
        "[" * 100_000,
        '{"file": ' + "9" * 5000 + "}",
        "{broken",
        "",
        '"text"',
        "null",
    ]
    found = _read(_reader(tmp_path, "\n".join([*rows, '{"file": "1.png", "text": "\\ud800b"}']), "m.jsonl"))
    assert [key for key, _ in found] == ["0.png", *(f"m.jsonl, row {i}" for i in range(2, 7)), "1.png"]
    assert found[-1][1] == "\ufffdb"


def test_bytes_that_are_no_utf8_are_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(sidecar.log, "warning", lambda what, *values: told.append(what % values))
    found = _read(_reader(tmp_path, b"file,text\ncaf\xe9.png,caf\xe9\n"))
    assert found == [("caf\udce9.png", "caf\ufffd")]
    assert len(told) == 1 and "1 rows hold bytes that are no UTF-8, the first is row 1" in told[0]
    with pytest.raises(UserError, match="is UTF-16; save it as UTF-8"):
        _reader(tmp_path, "file,text\n".encode("utf-16")).parts()


def test_names_from_other_machines(tmp_path):
    """As Windows and macOS write them, in full, with spaces; a file that is there as it is written comes first."""
    nfd = unicodedata.normalize("NFD", "café")
    pictures = ["a/0.png", "a/1.png", f"{nfd}/2.png", " 3.png", "b\\4.png", "b/4.png"]
    root = tmp_path / "real"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    names = [
        "a\\0.png",
        str(root / "a/1.png"),
        "café/2.png",
        " 3.png",
        "b\\4.png",
        " a/0.png ",
        str(tmp_path / "link/a/1.png"),
    ]
    names += [str(tmp_path / "none.png"), "C:\\a\\0.png"]
    reader = _reader(root, "\n".join(json.dumps({"file": name}) for name in names), "m.jsonl", pictures=pictures)
    found = [item for part in reader.parts() for item in reader.items(part)]
    assert [item.key for item in found[:7]] == [
        "a/0.png",
        "a/1.png",
        f"{nfd}/2.png",
        " 3.png",
        "b\\4.png",
        "a/0.png",
        "a/1.png",
    ]
    assert all(item.read() == item.key.encode() for item in found[:7])
    for item, reason in zip(found[7:], ("outside the folder", "outside the folder")):
        with pytest.raises(items.LeftOut) as error:
            item.read()
        assert error.value.reason == reason


def test_files_that_no_row_names_are_told(tmp_path):
    pictures = ["0.png", "sub/1.png", "notes.txt", ".hidden.png"]
    reader = _reader(tmp_path, "file\n0.png\n", pictures=pictures)
    assert dict(reader.others()) == {
        "0.png": sidecar.NOT_NAMED,
        "sub/1.png": sidecar.NOT_NAMED,
        "notes.txt": "no picture by its name",
        ".hidden.png": "hidden file",
    }
