"""What libpng and libjpeg print names no file; it is told once, with the file, on the thread that decoded it."""

import concurrent.futures
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest

from mae_pp_jax.data import decode, decoder_warnings
from mae_pp_jax.data.faults import Faults
from tests.conftest import ROOT

PIXELS = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def files() -> dict[str, bytes]:
    png, jpeg = (cv2.imencode(kind, PIXELS)[1].tobytes() for kind in (".png", ".jpg"))
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile" * 20))
    return {
        "good.png": png,
        "profile.png": png[:33] + profile + png[33:],
        "good.jpg": jpeg,
        "cut.jpg": jpeg[:-200] + b"\xff\xd9",
    }


def test_a_warning_belongs_to_the_file_that_is_decoded_on_that_thread():
    def read(name, data):
        found = set()
        for _ in range(100):
            decode.decode(data)
            found.add(tuple(decoder_warnings.take()))
        return name, found

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = dict(pool.map(lambda item: read(*item), files().items()))
    assert found["good.png"] == found["good.jpg"] == {()}
    assert found["profile.png"] == {("libpng warning: iCCP: too short",)}
    ((line,),) = found["cut.jpg"]
    assert line.startswith("Corrupt JPEG data")


def test_each_kind_is_told_once_with_its_first_file(caplog):
    caplog.set_level("WARNING", "mae_pp_jax")
    faults = Faults()
    for turn in range(3):
        for name, data in files().items():
            decode.decode(data)
            faults.warn(lambda name=name, turn=turn: f"{turn}/{name}")
    assert len(caplog.messages) == 2
    assert "0/profile.png" in caplog.messages[0] and "iCCP" in caplog.messages[0]
    assert "0/cut.jpg" in caplog.messages[1] and "Corrupt JPEG data" in caplog.messages[1]


def test_a_damaged_file_leaves_no_warning_for_the_next_one():
    with pytest.raises(decode.Unreadable):
        decode.decode(files()["profile.png"][:700])
    assert decoder_warnings.take() == []


def test_what_others_print_goes_where_it_went():
    code = (
        "import ctypes; from mae_pp_jax.data import decoder_warnings; libc = ctypes.CDLL(None)\n"
        "libc.fputs(b'one\\n', ctypes.c_void_p.in_dll(libc, 'stderr'))\n"
        "with decoder_warnings.collected(): libc.fputs(b'two\\n', ctypes.c_void_p.in_dll(libc, 'stderr'))\n"
        "assert decoder_warnings.take() == ['two']"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "one\n"
