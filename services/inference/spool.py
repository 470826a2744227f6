"""The bounded spool on disk: response records that Kafka has not acknowledged yet."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import Misconfigured, Overloaded
from shared.records import Output
from shared.telemetry import SPOOL_RECORDS

ROW_BYTES = 256
"""Counted per record beside its contents, for what SQLite and the headers take."""
_TABLE = "CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY AUTOINCREMENT, bytes INTEGER NOT NULL, "
_COLUMNS = "topic TEXT NOT NULL, key BLOB, value BLOB, headers TEXT NOT NULL)"


@dataclass(frozen=True, slots=True)
class SpooledRecord:
    """A record on disk, as it was given in: its identity (`ce_id`) is the same however often it is sent."""

    number: int
    output: Output


class Spool:
    """Records in the order they came, until they are acknowledged. Thread-safe; one process per file.

    What `add` returned for is on disk to the operating system: it survives the death of the process, kill
    -9 included. It is not synced to the platter record by record, so a power failure can take the last
    moments.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_file = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_file)
            raise Misconfigured(
                f"another process uses the spool {path}: give each replica a LOOPWRIGHT_DATA_DIR of its own"
            ) from None
        self._max = max_bytes
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_TABLE + _COLUMNS)
            row = self._db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM records").fetchone()
        except sqlite3.DatabaseError as error:
            os.close(self._lock_file)
            raise Misconfigured(
                f"the spool {path} cannot be read ({error}); move it away to start without it"
            ) from error
        path.chmod(0o600)
        self._count, self._bytes = int(row[0]), int(row[1])
        SPOOL_RECORDS.set(self._count)

    def add(self, record: Output) -> None:
        """Raises `Overloaded` where the bound is reached or the disk does not take it; then nothing was
        kept."""
        size = ROW_BYTES + len(record.key or b"") + len(record.value or b"")
        headers = json.dumps([[name, value.decode("utf-8")] for name, value in record.headers])
        with self._lock:
            if self._bytes + size > self._max:
                raise Overloaded(
                    f"the spool is full: {self._count} records wait for Kafka, {self._max >> 20} MB at most"
                )
            try:
                self._db.execute(
                    "INSERT INTO records (bytes, topic, key, value, headers) VALUES (?, ?, ?, ?, ?)",
                    (size, record.topic, record.key, record.value, headers),
                )
            except sqlite3.Error as error:
                raise Overloaded(f"the spool's disk does not take it: {error}") from error
            self._changed(1, size)
            self._filled.notify_all()

    def oldest(self, limit: int) -> list[SpooledRecord]:
        with self._lock:
            rows = self._db.execute(
                "SELECT id, topic, key, value, headers FROM records ORDER BY id LIMIT ?", (limit,)
            ).fetchall()
        return [
            SpooledRecord(
                number, Output(topic, key, value, tuple((n, v.encode()) for n, v in json.loads(headers)))
            )
            for number, topic, key, value, headers in rows
        ]

    def remove(self, numbers: Sequence[int]) -> None:
        """What Kafka has acknowledged (or will never take)."""
        marks = ",".join("?" * len(numbers))
        with self._lock:
            found = self._db.execute(
                f"DELETE FROM records WHERE id IN ({marks}) RETURNING bytes",  # noqa: S608 - only question marks
                list(numbers),
            ).fetchall()
            self._changed(-len(found), -sum(row[0] for row in found))

    def wait(self, timeout: float) -> bool:
        """Until there is a record, or for `timeout` seconds. Whether there is one."""
        with self._filled:
            return self._filled.wait_for(lambda: self._count > 0, timeout)

    def __len__(self) -> int:
        with self._lock:
            return self._count

    def close(self) -> None:
        with self._lock:
            self._db.close()
            os.close(self._lock_file)

    def _changed(self, count: int, size: int) -> None:
        self._count += count
        self._bytes += size
        SPOOL_RECORDS.set(self._count)
