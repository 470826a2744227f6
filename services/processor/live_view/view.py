"""Keeps the sums of `/tallies` current, in a thread next to the engine.

The thread reads all of `feedback.tallies` from its beginning with a reader of its own, and writes nothing. It must not
harm the engine: it waits while the engine has a backlog, reads at a limited rate, and any failure only restarts the
view. It then starts with an empty table, because a record that it missed may have been the deletion of an erased user's
tally. Why: `docs/decisions/live-view.md`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import structlog
from confluent_kafka import Message

from services.processor.live_view.tally_table import MAX_KEYS, TallyTable
from shared.adapters.kafka import KafkaLogReader
from shared.kafka_connection import KafkaConnection
from shared.ports import Position
from shared.records import Record
from shared.stream.engine import Engine
from shared.telemetry import LIVE_VIEW_BEHIND, LIVE_VIEW_FAILURES
from shared.topics import FEEDBACK_TALLIES

log = structlog.get_logger(__name__)

RECORDS_PER_S: Final = 5_000
"""Default limit of the reading rate. A record takes some 20 µs, so a tenth of a core at most."""
RECORDS_PER_PIECE: Final = 50
"""Records between two checks of the rate and of the engine's backlog."""
POLL_S: Final = 0.25
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
"""Pauses before restarts double from the first to the longest."""
SETTLED_S: Final = 60.0
"""After it ran this long, the pauses start over."""
STOP_S: Final = 3.0


class TallyReader(KafkaLogReader):
    """Reader of `feedback.tallies` that also knows how far it is behind."""

    def __init__(self, kafka: KafkaConnection, topic: str = FEEDBACK_TALLIES.name) -> None:
        self._ends: dict[Position, int] = {}
        super().__init__(kafka, "processor", [topic])

    def behind(self) -> int | None:
        """Return the number of offsets left to read, or None until the end of each partition is known."""
        left = 0
        for partition in self._consumer.assignment():
            place = (partition.topic, partition.partition)
            low, high = self._consumer.get_watermark_offsets(partition, cached=True)
            if high < 0:
                return None
            left += max(0, high - max(low, self._next.get(place, 0), self._ends.get(place, 0)))
        return left

    def _take(self, message: Message) -> Record | None:
        # The end of a partition may lie behind transaction markers, which are not returned as records.
        error = message.error()
        if error is not None and error.name() == "_PARTITION_EOF":
            self._ends[str(message.topic()), int(message.partition() or 0)] = int(message.offset() or 0)
        return super()._take(message)


class LiveView:
    """Sums of all tallies. Thread-safe: `status` and `snapshot` may be called at any time and never raise."""

    def __init__(
        self,
        engine: Engine,
        open_reader: Callable[[], TallyReader],
        *,
        max_keys: int = MAX_KEYS,
        records_per_s: int = RECORDS_PER_S,
        stopping: threading.Event | None = None,
    ) -> None:
        self._engine = engine
        self._open_reader = open_reader
        self._max_keys = max_keys
        self._records_per_s = records_per_s
        self._lock = threading.Lock()
        self._table = TallyTable(max_keys)
        self._behind: int | None = None
        self._reading = False
        self._failure = ""
        self._failures = 0
        self._stopping = stopping or threading.Event()
        self._thread = threading.Thread(target=self.run, name="live-view", daemon=True)

    def start(self) -> None:
        """Start the thread. It begins to read once the engine is ready."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading. A thread that hangs is left behind after `STOP_S` seconds: it only reads."""
        self._stopping.set()
        self._thread.join(STOP_S)

    def status(self) -> str:
        """Return the view's status for `/readyz`: "ok", or what it is waiting for."""
        with self._lock:
            if not self._reading:
                return f"restarting after: {self._failure}" if self._failure else "not started yet"
            behind = self._behind
        if behind is None:
            return "starting"
        waiting = ", waiting for the engine" if self._engine_is_busy() else ""
        return f"behind by {behind} records{waiting}" if behind or waiting else "ok"

    def snapshot(self, version: str | None = None) -> dict[str, Any]:
        """Return what `/tallies` shows, for all versions or for one. `behind` is null while it is unknown."""
        status = self.status()
        with self._lock:
            return {
                "live_view": status,
                "failures": self._failures,
                "behind": self._behind,
                "records": {name: self._table.records[name] for name in ("read", "unreadable", "left_out")},
                **self._table.summary(version),
            }

    # --- the view's thread ---

    def run(self) -> None:
        """Read until the view is stopped, and restart after each failure. `start` calls this in the view's thread."""
        pause = FIRST_PAUSE_S
        while not self._stopping.is_set():
            if not self._engine.ready:
                self._stopping.wait(POLL_S)
                continue
            started = time.monotonic()
            try:
                self._read()
            except Exception as error:  # noqa: BLE001 - no failure of the view may reach the engine
                self._record_failure(error)
            if time.monotonic() > started + SETTLED_S:
                pause = FIRST_PAUSE_S
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _read(self) -> None:
        """Read the topic from its beginning until the view is stopped."""
        with self._lock:
            self._reading = True
        reader = self._open_reader()
        try:
            while not self._stopping.is_set():
                if self._engine_is_busy():
                    self._stopping.wait(POLL_S)
                    continue
                self._apply(reader.poll(POLL_S))
                with self._lock:
                    self._behind = reader.behind()
                if self._behind is not None:
                    LIVE_VIEW_BEHIND.set(self._behind)
        finally:
            reader.close()

    def _apply(self, records: list[Record]) -> None:
        for piece in _pieces(records):
            while self._engine_is_busy() and not self._stopping.is_set():
                self._stopping.wait(POLL_S)
            started = time.monotonic()
            with self._lock:
                for record in piece:
                    self._table.apply(record.key, record.value)
            self._stopping.wait(max(0.0, started + len(piece) / self._records_per_s - time.monotonic()))

    def _engine_is_busy(self) -> bool:
        """Return whether the engine needs the process for itself: it restores state, or has more than a slice to do."""
        waiting = sum(sum(partition.lag.values()) for partition in self._engine.partitions())
        return self._engine.state == "restoring" or waiting > self._engine.config.slice_records

    def _record_failure(self, error: Exception) -> None:
        with self._lock:
            self._reading = False
            self._failures += 1
            self._failure = f"{type(error).__name__}: {error}"[:500]
            self._behind = None
            self._table = TallyTable(self._max_keys)
        LIVE_VIEW_FAILURES.inc()
        log.warning("live_view_restarting", error=self._failure)


def _pieces(records: list[Record]) -> Iterable[list[Record]]:
    return (records[at : at + RECORDS_PER_PIECE] for at in range(0, len(records), RECORDS_PER_PIECE))
