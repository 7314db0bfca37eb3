"""TensorBoard's files after a resume: every step once, none missing, in order."""

import struct

import pytest

from mae_pp_jax.core import event_files, metrics


def record(event: bytes) -> bytes:
    return struct.pack("<Q", len(event)) + b"crc1" + event + b"crc2"


def event(step: int, summary: bytes = b"x" * 200) -> bytes:
    """An `Event` as protobuf writes it: time, step (left out at 0), summary."""
    number = b"\x10" + bytes([step & 0x7F | 0x80, step >> 7]) if step else b""
    return b"\x09" + struct.pack("<d", 1.5) + number + b"\x2a" + bytes([len(summary) & 0x7F | 0x80, 1]) + summary


VERSION = record(b"\x09" + struct.pack("<d", 1.0) + b"\x1a\x0dbrain.Event:2")


@pytest.mark.parametrize("half", [0, 20])
def test_events_after_the_checkpoint_are_dropped_and_half_a_record(tmp_path, half):
    file, other = tmp_path / "events.out.tfevents.1.host", tmp_path / "notes.txt"
    kept = VERSION + b"".join(record(event(step)) for step in (100, 200, 300))
    late = b"".join(record(event(step)) for step in (301, 5000))
    file.write_bytes(kept + late + record(event(9))[: half or None] * bool(half))
    other.write_bytes(late)
    event_files.cut(tmp_path, 300)
    assert file.read_bytes() == kept and other.read_bytes() == late


def test_files_without_an_event_left_go_and_all_of_a_run_that_starts_anew(tmp_path):
    (tmp_path / "events.out.tfevents.1").write_bytes(VERSION + record(event(1)))
    (tmp_path / "events.out.tfevents.2").write_bytes(VERSION + record(event(5)))
    event_files.cut(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["events.out.tfevents.1"]
    event_files.cut(tmp_path, 0)
    assert not list(tmp_path.iterdir())
    event_files.cut(tmp_path / "none", 4)


def steps(folder) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    reader.Reload()
    return [point.step for point in reader.Tensors("train/loss")]


def test_tensorboards_own_reader_sees_every_step_once_after_a_kill_and_a_resume(tmp_path):
    killed = metrics.TensorBoard(tmp_path, True, resume_step=0)
    for step in range(1, 5):
        killed.scalars(step, {"train/loss": 1.0 / step})
    killed.flush()  # as before the checkpoint of step 4
    assert steps(tmp_path) == [1, 2, 3, 4]  # on disk, though nothing was closed
    for step in (5, 6):
        killed.scalars(step, {"train/loss": 1.0 / step})
    killed.flush()
    resumed = metrics.TensorBoard(tmp_path, True, resume_step=4)
    for step in range(5, 9):
        resumed.scalars(step, {"train/loss": 2.0 / step})
    resumed.close()
    assert steps(tmp_path) == list(range(1, 9))
    killed.close()
