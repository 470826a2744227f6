"""Reads the file of API keys, and reads it again when it changes: keys are made and revoked without a restart."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from shared.api_keys import KeyTable
from shared.errors import Malformed
from shared.ports import Clock

CHECK_EVERY_S: Final = 1.0
"""How often the file's state is looked at."""
READ_EVERY_S: Final = 10.0
"""How often the file is read although its state seems unchanged."""
KEEP_S: Final = 30.0
"""How long the last valid keys are used while the file cannot be read. Then every request is refused."""
MAX_FILE_BYTES: Final = 4 << 20
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Read:
    """The last valid content of the file."""

    table: KeyTable
    at: float


class KeyFile:
    """The keys in a file. Thread-safe; a call reads the file at most once a second.

    A file that is missing or damaged never opens anything: `problem` says what is wrong, and `keys` returns the last
    valid keys for at most `KEEP_S` seconds, then None.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._checked_at: float | None = None
        self._read_at = 0.0
        self._state: tuple[int, int, int] | None = None
        self._last: _Read | None = None
        self._problem: str | None = None

    def keys(self) -> KeyTable | None:
        """Return the keys, or None if there are none that may still be used."""
        now = self._clock.monotonic()
        if self._checked_at is None or now - self._checked_at >= CHECK_EVERY_S:
            with self._lock:
                if self._checked_at is None or now - self._checked_at >= CHECK_EVERY_S:
                    self._refresh(now)
                    self._checked_at = now
        last = self._last
        if last is None or (self._problem is not None and now - last.at > KEEP_S):
            return None
        return last.table

    @property
    def problem(self) -> str | None:
        """Why the file cannot be used and what to do about it, or None. For readiness checks."""
        self.keys()
        return self._problem

    def _refresh(self, now: float) -> None:
        try:
            status = self.path.stat()
            state = (status.st_mtime_ns, status.st_size, status.st_ino)
            if state == self._state and self._problem is None and now - self._read_at < READ_EVERY_S:
                if self._last is not None:
                    self._last = _Read(self._last.table, now)
                return
            with self.path.open("rb") as file:
                table = KeyTable.parse(file.read(MAX_FILE_BYTES))
        except (OSError, Malformed) as error:
            self._set_problem(f"API keys: {self.path} cannot be used ({_reason(error)}): restore it, or make keys with "
                              f"`loopwright keys create NAME --file ...`. Requests are refused meanwhile.")  # fmt: skip
            return
        if self._last is None or self._last.table != table:
            log.info("api_keys_read", path=str(self.path), keys=len(table.keys))
        self._last, self._state, self._read_at, self._problem = _Read(table, now), state, now, None

    def _set_problem(self, problem: str) -> None:
        if problem != self._problem:
            log.error("api_keys_unusable", error=problem)
        self._problem = problem


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
