"""Tars that would fill the memory: members and headers beyond all measure are left out, the others are read."""

import io
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


def _write(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return tars.TarReader((str(path),), items.Columns.parse(""))


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


def test_of_many_pictures_with_one_stem_only_the_first_is_kept(tmp_path):
    members = [("1.png", PICTURE), *((f"1.{i}.jpg", bytes(LIMIT)) for i in range(40)), ("1.txt", b"a caption")]
    reader = _write(tmp_path / "a.tar.gz", members)
    found, peak = _read(reader)
    assert found == {"a.tar.gz/1": PICTURE} and peak < 8 * LIMIT
    assert [item.caption for item in reader.items(reader.parts()[0])] == ["a caption"]


def test_a_name_that_would_fill_the_memory_ends_the_tar(tmp_path):
    members = [("0.png", PICTURE), ("1.png", PICTURE), ("2" * 32 * LIMIT + ".png", PICTURE)]
    found, peak = _read(_write(tmp_path / "a.tar.gz", members))
    assert found.pop("a.tar.gz/0") == PICTURE  # of what belongs to 1 there might be more
    ((key, (reason, detail)),) = found.items()
    assert key == "a.tar.gz, after 1" and reason == "damaged entry" and "a header of 33,554,4" in detail
    assert peak < 16 * LIMIT


def test_a_large_file_of_a_folder_is_left_out(tmp_path):
    (tmp_path / "a.bmp").write_bytes(bytes(LIMIT + 1))
    with pytest.raises(items.LeftOut, match="1,048,577 bytes; image files of at most"):
        folders.read_inside(str(tmp_path), "a.bmp")
