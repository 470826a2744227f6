"""Bounded queue on disk for response records that Kafka has not acknowledged yet."""

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
"""Estimate of the bytes per record that SQLite and the headers take, counted in addition to key and value."""
_TABLE = "CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY AUTOINCREMENT, bytes INTEGER NOT NULL, "
_COLUMNS = "topic TEXT NOT NULL, key BLOB, value BLOB, headers TEXT NOT NULL)"


@dataclass(frozen=True, slots=True)
class SpooledRecord:
    """A record on disk and its number in the spool. Its `ce_id` stays the same however often it is sent."""

    number: int
    output: Output


class Spool:
    """First-in-first-out queue of records in a SQLite file. Thread-safe; one process per file.

    A record survives the death of the process, kill -9 included, once `add` has returned. Single records are not
    synced to disk, so a power failure can lose the last moments.

    Args:
        path: The SQLite file; created if missing.
        max_bytes: Limit of the queue's size.

    Raises:
        Misconfigured: if another process uses the file, or it is not a readable database.

    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock_file = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_file)
            raise Misconfigured(
                f"another process uses the spool {path}: give each replica its own LOOPWRIGHT_DATA_DIR"
            ) from None
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._added = threading.Condition(self._lock)
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_TABLE + _COLUMNS)
            row = self._db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM records").fetchone()
        except sqlite3.OperationalError as error:
            os.close(self._lock_file)
            raise Misconfigured(
                f"the spool {path} cannot be opened ({error}): free some disk space, and check that this process may "
                "write to the folder"
            ) from error
        except sqlite3.DatabaseError as error:
            os.close(self._lock_file)
            raise Misconfigured(
                f"the spool {path} cannot be read ({error}); move the file away to start with an empty spool"
            ) from error
        path.chmod(0o600)
        self._count, self._bytes = int(row[0]), int(row[1])
        SPOOL_RECORDS.set(self._count)

    def add(self, record: Output) -> None:
        """Append a record.

        Raises:
            Overloaded: if the spool or the disk is full. Then the record is not stored.

        """
        size = ROW_BYTES + len(record.key or b"") + len(record.value or b"")
        headers = json.dumps([[name, value.decode("utf-8")] for name, value in record.headers])
        with self._lock:
            if self._bytes + size > self._max_bytes:
                raise Overloaded(
                    f"the spool is full: {self._count} records wait for Kafka (limit {self._max_bytes >> 20} MiB)"
                )
            try:
                self._db.execute(
                    "INSERT INTO records (bytes, topic, key, value, headers) VALUES (?, ?, ?, ?, ?)",
                    (size, record.topic, record.key, record.value, headers),
                )
            except sqlite3.Error as error:
                raise Overloaded(f"the spool cannot be written: {error}") from error
            self._update_size(1, size)
            self._added.notify_all()

    def oldest(self, limit: int) -> list[SpooledRecord]:
        """Return the oldest records, at most `limit`.

        Raises:
            Overloaded: if the disk is full or cannot be read. Call again later.

        """
        with self._lock:
            try:
                rows = self._db.execute(
                    "SELECT id, topic, key, value, headers FROM records ORDER BY id LIMIT ?", (limit,)
                ).fetchall()
            except sqlite3.Error as error:
                raise Overloaded(f"the spool cannot be read: {error}") from error
        return [
            SpooledRecord(
                number,
                Output(topic, key, value, tuple((name, text.encode()) for name, text in json.loads(headers))),
            )
            for number, topic, key, value, headers in rows
        ]

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove records by their numbers.

        Raises:
            Overloaded: if the disk is full or cannot be written. The records stay, so they are sent again.

        """
        placeholders = ",".join("?" * len(numbers))
        with self._lock:
            try:
                removed = self._db.execute(
                    f"DELETE FROM records WHERE id IN ({placeholders}) RETURNING bytes",  # noqa: S608 - only question marks
                    list(numbers),
                ).fetchall()
            except sqlite3.Error as error:
                raise Overloaded(f"the spool cannot be written: {error}") from error
            self._update_size(-len(removed), -sum(row[0] for row in removed))

    def wait(self, timeout_s: float) -> bool:
        """Wait for a record, at most `timeout_s` seconds. Return whether there is one."""
        with self._added:
            return self._added.wait_for(lambda: self._count > 0, timeout_s)

    def __len__(self) -> int:
        with self._lock:
            return self._count

    def close(self) -> None:
        """Close the file, so that another process can open it."""
        with self._lock:
            self._db.close()
            os.close(self._lock_file)

    def _update_size(self, records: int, size: int) -> None:
        self._count += records
        self._bytes += size
        SPOOL_RECORDS.set(self._count)
