"""Tars as people make them, damage them and mean harm by them: every member is read, or told with the reason."""

import io
import json
import random
import tarfile
import tracemalloc

import pytest

from mae_pp_jax.data.building import folders, items, tars
from tests.data.pictures import encode, noise

LIMIT = 2**20
PICTURE = encode(noise(0, 8, 8), "png")


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    monkeypatch.setattr(items, "MOST_BYTES", LIMIT)


def _write(path, members, mode="w:gz"):
    """A reader of a tar of (name, content) or headers."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return tars.TarReader((str(path),), items.Columns.parse(""))


def _link(name, target, kind=tarfile.LNKTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _tags(reader):
    """Key → hashtags, or why it is left out."""
    found = [item for part in reader.parts() for item in reader.items(part)]
    return {i.key: i.read.reason if isinstance(i.read, items.Broken) else i.hashtags for i in found}


def _sides(*keys):
    return [(f"{key}.json", json.dumps([f"of {key}"]).encode()) for key in keys]


def _read(reader):
    """Key → bytes of the picture, or why it is left out; and the memory that reading took at most."""
    found = {}
    tracemalloc.start()
    for item in reader.items(reader.parts()[0]):
        try:
            found[item.key] = item.read()
        except items.LeftOut as error:
            found[item.key] = error.reason, error.detail
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return found, peak


def test_a_member_that_would_fill_the_memory_is_left_out(tmp_path):
    reader = _write(tmp_path / "a.tar.gz", [("1.png", PICTURE), ("2.jpg", bytes(32 * LIMIT)), ("3.png", PICTURE)])
    found, peak = _read(reader)
    fault = "33,554,432 bytes; image files of at most 1,048,576 are read"
    assert found == {"a.tar.gz/1": PICTURE, "a.tar.gz/2": ("unreadable", fault), "a.tar.gz/3": PICTURE}
    assert peak < 8 * LIMIT


def test_of_many_pictures_with_one_key_only_the_first_is_kept(tmp_path):
    members = [("1.png", PICTURE), *((f"1.{i}.jpg", bytes(LIMIT)) for i in range(40)), ("1.txt", b"a caption")]
    reader = _write(tmp_path / "a.tar.gz", members)
    found, peak = _read(reader)
    assert found.pop("a.tar.gz/1") == PICTURE and peak < 8 * LIMIT
    assert found.keys() == {f"a.tar.gz/1.{i}.jpg" for i in range(40)}
    assert {reason for reason, _ in found.values()} == {"further part of an example"}
    assert [item.caption for item in reader.items(reader.parts()[0]) if item.caption] == ["a caption"]


def test_a_name_that_would_fill_the_memory_ends_the_tar(tmp_path):
    members = [("0.png", PICTURE), ("1.png", PICTURE), ("2" * 32 * LIMIT + ".png", PICTURE)]
    found, peak = _read(_write(tmp_path / "a.tar.gz", members))
    assert found.pop("a.tar.gz/0") == found.pop("a.tar.gz/1") == PICTURE  # what was read stays
    ((key, (reason, detail)),) = found.items()
    assert key == "a.tar.gz, after 1" and reason == "damaged entry" and "a header of 33,554,4" in detail
    assert peak < 16 * LIMIT


def test_a_large_file_of_a_folder_is_left_out(tmp_path):
    (tmp_path / "a.bmp").write_bytes(bytes(LIMIT + 1))
    with pytest.raises(items.LeftOut, match="1,048,577 bytes; image files of at most"):
        folders.read_inside(str(tmp_path), "a.bmp")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_are_read_as_what_they_lead_to(tmp_path, mode):
    other = PICTURE + b"other"
    members = [_link("early.png", "d/1.png", tarfile.SYMTYPE), ("d/1.png", PICTURE), ("d/2.png", other)]
    members += [_link("d/3.png", "d/1.png"), _link("d/4.png", "3.png", tarfile.SYMTYPE), _link("d/5.png", "d/2.png")]
    members += [_link("e", "d", tarfile.SYMTYPE), _link("9.png", "e/4.png", tarfile.SYMTYPE)]
    members += [_link("6.png", "gone.png"), _link("7.png", "/etc/passwd", tarfile.SYMTYPE), _link("8.png", "8.png")]
    found, _ = _read(_write(tmp_path / "a.tar", members, mode))
    pictures = {
        "early": PICTURE,
        "d/1": PICTURE,
        "d/2": other,
        "d/3": PICTURE,
        "d/4": PICTURE,
        "d/5": other,
        "9": PICTURE,
    }
    assert {key: found.pop(f"a.tar/{key}") for key in pictures} == pictures
    reasons = {key: reason for key, (reason, _) in found.items()}
    assert reasons == {
        "a.tar/6.png": "damaged entry",
        "a.tar/7.png": "link out of the tar",
        "a.tar/8.png": "damaged entry",
        "a.tar/e": "no picture by its name",
    }


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_parts_of_an_example_may_stand_anywhere(tmp_path, mode):
    pictures = [(f"{i}.png", PICTURE) for i in range(100)]
    texts = _sides(*range(100))
    mixed = random.Random(0).sample([*pictures, *texts], 200)
    for number, members in enumerate(([*pictures, *texts], [*texts, *pictures], mixed)):
        reader = _write(tmp_path / f"{number}.tar", members, mode)
        assert _tags(reader) == {f"{number}.tar/{i}": (f"of {i}",) for i in range(100)}


def test_twins_of_macos_are_told_and_break_nothing(tmp_path):
    members = []
    for name, content in [*_sides("./0"), ("./0.png", PICTURE), *_sides("./1"), ("./1.png", PICTURE)]:
        members += [(name.replace("./", "./._"), b"twin"), (name, content), (f"__MACOSX/{name[2:]}", b"twin")]
    found = _tags(_write(tmp_path / "a.tar", members))
    assert found.pop("a.tar/0") == ("of ./0",) and found.pop("a.tar/1") == ("of ./1",)
    assert len(found) == 8 and set(found.values()) == {"hidden file"}


def test_keys_end_at_the_first_dot_and_what_that_leaves_out_is_told(tmp_path):
    members = [(f"shoe_{i}.5x.{kind}", data) for i in range(2) for kind, data in (("json", b'["a"]'), ("png", PICTURE))]
    members += [(f"track 2.{i} (x).{kind}", d) for i in (0, 1) for kind, d in (("json", b'["b"]'), ("png", PICTURE))]
    members += [("7.seg.png", PICTURE), ("7.seg.txt", b"mask"), ("7.png", PICTURE), ("7.npy", b""), ("7.cls", b"c")]
    members += [("8.png", PICTURE), ("8.png", PICTURE), ("8.v2.json", b'["later"]'), ("8.json", b'["now"]')]
    assert _tags(_write(tmp_path / "a.tar", members)) == {
        "a.tar/shoe_0": ("a",),
        "a.tar/shoe_1": ("a",),
        "a.tar/track 2": ("b",),
        "a.tar/track 2.1 (x).png": "further part of an example",
        "a.tar/7": None,
        "a.tar/7.seg.png": "further part of an example",
        "a.tar/7.npy": "no picture by its name",
        "a.tar/8": ("now",),
        "a.tar/8.png": "listed twice",
        "a.tar/8.v2.json": "further part of an example",
    }


def test_cut_and_joined_archives(tmp_path):
    """What stands before the damage is read; that something is lost is told, also where tar itself is silent."""
    _write(tmp_path / "whole.tar", [(f"{i}.png", PICTURE) for i in range(4)], "w")
    data, size = (tmp_path / "whole.tar").read_bytes(), 512 + -(-len(PICTURE) // 512) * 512
    cuts = {"header": 2 * size + 300, "between": 2 * size, "picture": 2 * size + 520, "mark": 4 * size}
    for name, end in cuts.items():
        (tmp_path / f"{name}.tar").write_bytes(data[:end])
    (tmp_path / "damaged.tar").write_bytes(data[: 2 * size] + b"x" * 512 + data[2 * size + 512 :])
    more = [(f"{i}.png", PICTURE) for i in range(4, 6)]
    _write(tmp_path / "more.tar", more, "w")
    (tmp_path / "joined.tar").write_bytes(data + (tmp_path / "more.tar").read_bytes())
    (tmp_path / "empty.tar").write_bytes(b"")
    found = {}
    for name in (*cuts, "damaged", "empty", "whole", "joined"):
        reader = tars.TarReader((str(tmp_path / f"{name}.tar"),), items.Columns.parse(""))
        found[name] = _tags(reader)
    pictures = {name: sum(tags is None for tags in tags_of.values()) for name, tags_of in found.items()}
    assert pictures == dict(header=2, between=2, picture=2, mark=4, damaged=2, empty=0, whole=4, joined=6)
    told = {name: [key for key, reason in of.items() if reason == "damaged entry"] for name, of in found.items()}
    after = {"picture": 2, "mark": 3}
    assert told == {n: [f"{n}.tar, after {after.get(n, 1)}"] for n in (*cuts, "damaged")} | {
        "empty": ["empty.tar, after None"],
        "whole": [],
        "joined": [],
    }


def test_an_example_that_cannot_be_read_is_named(tmp_path):
    texts = [b"{", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe\x00"]
    members = [m for i, text in enumerate(texts) for m in ((f"{i}.png", PICTURE), (f"{i}.json", text))]
    found = _tags(_write(tmp_path / "a.tar", members))
    assert found == {f"a.tar/{i}": "damaged entry" for i in range(4)}
