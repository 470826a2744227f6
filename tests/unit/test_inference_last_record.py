"""The last served rollout record on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.inference.last_record import LastRecord
from tests.inference_factories import BASE, LINE, rollout_record, version_ref


def test_record_survives_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "inference" / "last.json"
    assert LastRecord(file, LINE).read() is None
    for seq in (1, 2):
        LastRecord(file, LINE).write(rollout_record(seq, version_ref(LINE, seq)))
    assert LastRecord(file, LINE).read() == rollout_record(2, version_ref(LINE, 2))
    assert [path.name for path in file.parent.iterdir()] == ["last.json"]


def test_record_of_another_line_is_not_served(tmp_path: Path) -> None:
    LastRecord(tmp_path / "last.json", "other").write(rollout_record(1, BASE, line="other"))
    assert LastRecord(tmp_path / "last.json", LINE).read() is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"seq": 1}'])
def test_damaged_file_is_ignored_and_replaced(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "last.json"
    file.write_bytes(content)
    last = LastRecord(file, LINE)
    assert last.read() is None
    last.write(rollout_record(1, BASE))
    assert last.read() == rollout_record(1, BASE)


def test_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    last = LastRecord(tmp_path / "file" / "last.json", LINE)
    last.write(rollout_record(1, BASE))
    assert last.read() is None
