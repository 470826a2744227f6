"""A run's curves: TensorBoard's files, true after a crash, and never a reason for a run to end."""

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
    """All records of all files, in the order in which TensorBoard reads them; a wrong checksum fails."""
    found = []
    for file in sorted((run / TENSORBOARD).glob("*tfevents*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("Q", content[:8])
            record = content[12 : 12 + length]
            assert struct.unpack("I", content[12 + length : 16 + length]) == (masked_crc32c(record),)
            found.append(Event.FromString(record))
            content = content[16 + length :]
    return found


def points(run: Path, name: str) -> list[tuple[int, float]]:
    return [
        (event.step, round(value.simple_value, 3))
        for event in events(run)
        for value in event.summary.value
        if value.tag == name
    ]


def test_loss_rate_gradient_and_speed_are_drawn_by_step(tmp_path: Path) -> None:
    drawn = CurveWriter(tmp_path)
    drawn.begin(0)
    for step in (1, 2):
        drawn.draw(
            step, {"loss": 2.0 / step, "grad_norm": 0.5, "epoch": 0.1, "kto/kl": 0.25, "note": "a word"}
        )
    assert points(tmp_path, "train/loss") == [(1, 2.0), (2, 1.0)], (
        "there before it is closed: it may be killed"
    )
    drawn.close()
    tags = {value.tag for event in events(tmp_path) for value in event.summary.value}
    assert tags == {"train/loss", "train/grad_norm", "train/kto/kl"}
    assert events(tmp_path)[0].file_version == "brain.Event:2"


def test_what_was_drawn_after_the_checkpoint_that_a_run_goes_on_from_is_void(tmp_path: Path) -> None:
    for begin, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        drawn = CurveWriter(tmp_path)
        drawn.begin(begin)
        for step in steps:
            drawn.draw(step, {"loss": float(step)})
        drawn.close()
    restarts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert restarts == [3]
    assert len(list((tmp_path / TENSORBOARD).iterdir())) == 2


def test_curves_that_cannot_be_written_are_given_up_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, _path: str) -> None:
            pass

        def write(self, _record: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = close = write

    monkeypatch.setattr(tensorboard, "RecordWriter", Full)
    drawn = CurveWriter(tmp_path)
    drawn.begin(0)
    drawn.draw(1, {"loss": 1.0})
    drawn.close()
    (tmp_path / "file").write_text("in its way")
    other = CurveWriter(tmp_path / "file")
    other.begin(0)
    other.draw(1, {"loss": 1.0})
    other.close()
