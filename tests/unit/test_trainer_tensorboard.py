"""Training curves: readable by TensorBoard, correct after a crash, and never a reason for a run to fail."""

from __future__ import annotations

import errno
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from services.trainer.run.folder import TENSORBOARD
from services.trainer.training import tensorboard
from services.trainer.training.tensorboard import CurveWriter


def events(run: Path) -> list[Event]:
    """Return the events of all files in TensorBoard's order, and check their checksums."""
    events = []
    for file in sorted((run / TENSORBOARD).glob("*tfevents*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("Q", content[:8])
            record = content[12 : 12 + length]
            assert struct.unpack("I", content[12 + length : 16 + length]) == (masked_crc32c(record),)
            events.append(Event.FromString(record))
            content = content[16 + length :]
    return events


def points(run: Path, tag: str) -> list[tuple[int, float]]:
    """Return (step, value) of each point of a curve."""
    return [
        (event.step, round(value.simple_value, 3))
        for event in events(run)
        for value in event.summary.value
        if value.tag == tag
    ]


def test_metrics_are_written_per_step(tmp_path: Path) -> None:
    curves = CurveWriter(tmp_path)
    curves.open(0)
    for step in (1, 2):
        curves.add(
            step, {"loss": 2.0 / step, "grad_norm": 0.5, "epoch": 0.1, "kto/kl": 0.25, "note": "a word"}
        )
    assert points(tmp_path, "train/loss") == [(1, 2.0), (2, 1.0)], (
        "written before the file is closed, because the process may be killed"
    )
    curves.close()
    tags = {value.tag for event in events(tmp_path) for value in event.summary.value}
    assert tags == {"train/loss", "train/grad_norm", "train/kto/kl"}
    assert events(tmp_path)[0].file_version == "brain.Event:2"


def test_points_after_the_resumed_step_are_hidden(tmp_path: Path) -> None:
    for first_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        curves = CurveWriter(tmp_path)
        curves.open(first_step)
        for step in steps:
            curves.add(step, {"loss": float(step)})
        curves.close()
    restarts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert restarts == [3]
    assert len(list((tmp_path / TENSORBOARD).iterdir())) == 2


def test_full_disk_stops_the_curves_but_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FullDisk:
        def __init__(self, _path: str) -> None:
            pass

        def write(self, _record: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = close = write

    monkeypatch.setattr(tensorboard, "RecordWriter", FullDisk)
    curves = CurveWriter(tmp_path)
    curves.open(0)
    curves.add(1, {"loss": 1.0})
    curves.close()
    (tmp_path / "file").write_text("not a folder")
    blocked = CurveWriter(tmp_path / "file")
    blocked.open(0)
    blocked.add(1, {"loss": 1.0})
    blocked.close()
