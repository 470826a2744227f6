"""The rollout record that this replica served last, on disk: a restart without Kafka serves its versions again."""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from shared.errors import Rejected
from shared.versions import RolloutRecord

log = structlog.get_logger(__name__)


class LastRecord:
    """One record in a file of this replica. A file that cannot be read or written is logged, and changes nothing else.

    Args:
        file: Where the record is; created with its folder at the first `write`.
        line: The line that is served. A record of another line is ignored.

    """

    def __init__(self, file: Path, line: str) -> None:
        self._file = file
        self._line = line

    def read(self) -> RolloutRecord | None:
        """Return the record, or None if there is none that can be read."""
        try:
            record = RolloutRecord.from_json(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, Rejected) as error:
            log.warning("last_record_unreadable", file=str(self._file), error=str(error))
            return None
        return record if record.line == self._line else None

    def write(self, record: RolloutRecord) -> None:
        """Replace the record, whole or not at all."""
        unfinished = self._file.with_suffix(".unfinished")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as out:
                out.write(record.to_json())
                out.flush()
                os.fsync(out.fileno())
            unfinished.replace(self._file)
        except OSError as error:
            log.warning("last_record_not_written", file=str(self._file), error=str(error))
