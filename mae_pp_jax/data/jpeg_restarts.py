"""Cuts a part out of an encoded JPEG without decoding the rest, by its restart markers (ITU T.81, B.2.1 and E.2.4).

A JPEG is one stream of bits from its first row to its last. With restart markers the stream is in intervals that
can each be decoded alone. Where a whole number of them makes up every row of units (the 8 × 8 to 32 × 32 pixels that
are coded together), those of some rows and columns, put together under a header with their size, are a JPEG of that
part of the picture. `data build` writes such files; cameras often do.
"""

import dataclasses
import shutil
import struct
import subprocess

import numpy as np

_MARGIN = 2  # pixels around a part: colours stored at half resolution are interpolated between neighbours
_SEQUENTIAL = (0xC0, 0xC1)  # markers of frames with one Huffman-coded scan
_WIDTH = 32  # pixels that an interval spans at least: a marker costs about 5 bytes, and parts are cut at intervals
_NUMBERS = np.arange(0xD0, 0xD8, dtype=np.uint8)
_JPEGTRAN = "jpegtran"


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """Where things stand in a JPEG of one sequential scan.

    Attributes:
      frame: byte at which the frame header stands.
      scan: byte at which the coded picture begins.
      end: byte after the coded picture.
      interval: units between two restart markers; 0: there are none.
      unit: (height, width) in pixels of what is coded together.
    """

    frame: int
    scan: int
    end: int
    interval: int
    unit: tuple[int, int]


def read_layout(data: bytes, frame: int, scan: int, end: int, interval: int) -> Layout | None:
    """The layout of a JPEG, none if it is of another kind or makes no sense.

    Args:
      data: the file.
      frame: byte at which the frame header stands.
      scan: byte at which the first scan's header stands.
      end: byte after the coded picture.
      interval: units between two restart markers, as the file says.

    Raises:
      IndexError, struct.error: the file ends in its header.
    """
    (length,) = struct.unpack_from(">H", data, scan + 2)
    size, begin = unit(data, frame), scan + 2 + length
    together = data[scan + 4] == data[frame + 9]  # all components, not a scan for each
    if data[frame + 1] not in _SEQUENTIAL or not together or size is None or begin >= end:
        return None
    return Layout(frame, begin, end, interval, size)


def unit(data: bytes, frame: int) -> tuple[int, int] | None:
    """(height, width) in pixels of what is coded together, from the frame header at byte `frame`; none if senseless.

    Raises:
      IndexError: the file ends in its header.
    """
    components = data[frame + 9]
    sampling = [data[frame + 11 + 3 * i] for i in range(components)]
    down, across = [s & 15 for s in sampling], [s >> 4 for s in sampling]
    if not all(1 <= factor <= 4 for factor in down + across) or not components:
        return None
    return (8 * max(down), 8 * max(across)) if components > 1 else (8, 8)


def cut(data: bytes, layout: Layout, box: tuple[int, int, int, int]) -> tuple[bytearray, int, int] | None:
    """A JPEG of a part of the picture that holds `box` and a margin around it, none if its markers do not allow it.

    Args:
      data: the file.
      layout: of the file.
      box: (top, left, height, width) in pixels, as stored.

    Returns:
      The JPEG, and the row and the column of the picture at which it begins.
    """
    height, width = struct.unpack_from(">HH", data, layout.frame + 5)
    unit_height, unit_width = layout.unit
    rows, columns = -(-height // unit_height), -(-width // unit_width)
    if not layout.interval or columns % layout.interval:
        return None
    starts, lengths = _intervals(data, layout)
    columns //= layout.interval  # from here on in intervals
    if len(starts) != rows * columns:
        return None
    interval_width = unit_width * layout.interval
    top, left, box_height, box_width = box
    first_row, first_column = max(0, top - _MARGIN) // unit_height, max(0, left - _MARGIN) // interval_width
    last_row = min(rows, -(-(top + box_height + _MARGIN) // unit_height))
    last_column = min(columns, -(-(left + box_width + _MARGIN) // interval_width))
    kept = slice(first_row, last_row), slice(first_column, last_column)
    starts, lengths = starts.reshape(rows, columns)[kept], lengths.reshape(rows, columns)[kept]
    size = (
        min(height, last_row * unit_height) - first_row * unit_height,
        min(width, last_column * interval_width) - first_column * interval_width,
    )
    begin, end = starts[:, 0].tolist(), (starts[:, -1] + lengths[:, -1]).tolist()
    out = bytearray(data[: layout.scan])
    struct.pack_into(">HH", out, layout.frame + 5, *size)
    markers = len(out) + np.cumsum(lengths.ravel()[:-1] + 2) - 1
    out += b"\xff\xd0".join([data[b:e] for b, e in zip(begin, end, strict=True)])
    out += b"\xff\xd9"  # for the last interval's marker; the others count from 0 to 7 again and again
    np.frombuffer(out, np.uint8)[markers] = np.resize(_NUMBERS, len(markers))
    return out, first_row * unit_height, first_column * interval_width


def _intervals(data: bytes, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Where each restart interval starts in `data`, and how many bytes it has."""
    coded = np.frombuffer(data, np.uint8, layout.end - layout.scan, layout.scan)
    escapes = np.flatnonzero(coded[:-1] == 0xFF)
    markers = escapes[(coded[1:][escapes] & 0xF8) == 0xD0] + layout.scan
    starts = np.concatenate(([layout.scan], markers + 2))
    return starts, np.concatenate((markers, [layout.end])) - starts


def interval(width: int, unit_width: int) -> int:
    """The units an interval should have so that intervals divide every row and are at least `_WIDTH` pixels wide."""
    columns = -(-width // unit_width)
    return next(n for n in range(min(-(-_WIDTH // unit_width), columns), columns + 1) if columns % n == 0)


def available() -> bool:
    """Whether `insert` can work: it needs the program jpegtran of libjpeg-turbo."""
    return shutil.which(_JPEGTRAN) is not None


def insert(data: bytes, frame: int) -> bytes | None:
    """The JPEG with its frame header at byte `frame` coded anew, without loss, with restart markers; none if damaged.

    A progressive JPEG becomes a sequential one, which is decoded faster.
    """
    if (size := unit(data, frame)) is None:
        return None
    (width,) = struct.unpack_from(">H", data, frame + 7)
    command = [_JPEGTRAN, "-copy", "all", "-optimize", "-restart", f"{interval(width, size[1])}B"]
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout if done.returncode == 0 else None
