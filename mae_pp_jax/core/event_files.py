"""TensorBoard's event files, cut to the steps that a resumed run keeps.

A file is a sequence of records (TensorFlow's TFRecord: length, its checksum, content, its checksum), each an `Event` in
protobuf's wire format, of which field 1 is the time, 2 the step and 5 the summary. Both are read here as far as that
takes: TensorFlow itself is imported seconds later, on the thread that writes.
"""

import struct
from collections.abc import Iterator

from mae_pp_jax.core import storage

_STEP, _SUMMARY = 2, 5  # fields of Event
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf


def cut(folder: storage.Path, step: int) -> None:
    """Drops the events after a step from all event files of a folder, and half a record at the end of one.

    Files without an event that is left are removed; of a run that starts anew, with step 0, these are all.
    """
    for name in storage.names(folder):
        if ".tfevents." not in name:
            continue
        content = storage.read_bytes(folder / name)
        events = list(_records(content))
        kept = [record for record, event in events if not _is_after(event, step)]
        if not any(_fields(event).get(_SUMMARY) and not _is_after(event, step) for _, event in events):
            storage.remove(folder / name)
        elif sum(map(len, kept)) < len(content):
            storage.write_whole(folder / name, b"".join(kept))


def _is_after(event: bytes, step: int) -> bool:
    fields = _fields(event)
    return bool(fields.get(_SUMMARY)) and (step == 0 or fields.get(_STEP, 0) > step)


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(whole record, its event) of each complete record."""
    at = 0
    while at + 16 <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        end = at + 16 + length
        if end > len(content):
            return
        yield content[at:end], content[at + 12 : end - 4]
        at = end


def _fields(event: bytes) -> dict[int, int | bool]:
    """Number of a field of the message → its value if it is a number, else True."""
    found, at = {}, 0
    while at < len(event):
        tag, at = _varint(event, at)
        kind, value = tag & 7, True
        if kind == _VARINT:
            value, at = _varint(event, at)
        elif kind == _BYTES:
            length, at = _varint(event, at)
            at += length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:  # none that Event has
            break
        found[tag >> 3] = value
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where it ends)."""
    value = shift = 0
    while at < len(data):
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, at
