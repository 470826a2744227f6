"""What waits to be sent: in memory, or in an SQLite file that outlives the process.

Rows are bodies of the bulk routes and have ids, so one that is sent twice counts once.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from loopwright.errors import OutboxFull

Kind = Literal["feedback", "response"]
LEASE_S: Final = 120.0
"""How long a process may take to send what it took. Afterwards another process sends it."""
LOCK_S: Final = 1.0
"""Longest wait for other processes that write to the same file, in seconds."""
KEPT_REFUSALS: Final = 1_000
"""Refused rows that are kept; older ones are removed."""
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS waiting (
    number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, row BLOB NOT NULL, taken_until REAL NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS refused (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, row BLOB NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class Item:
    """A row that waits."""

    number: int
    kind: Kind
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that the service refused, and why. Sending it again cannot help."""

    kind: Kind
    row: Mapping[str, Any]
    reason: str


class Outbox(Protocol):
    """Rows that wait, in the order in which they were added. Thread-safe."""

    def put(self, kind: Kind, row: bytes) -> None:
        """Add a row. Raises `OutboxFull` if there is no space for it."""

    def take(self, most: int) -> list[Item]:
        """Return the oldest rows that nobody sends at the moment."""

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove rows that were sent."""

    def release(self, numbers: Iterable[int]) -> None:
        """Let rows that could not be sent wait again."""

    def refuse(self, item: Item, reason: str) -> None:
        """Move a row to those that the service refused."""

    def waiting(self) -> int:
        """Return how many rows were not sent yet."""

    def refused(self) -> list[Refusal]:
        """Return the newest refused rows, the oldest of them first."""

    def after_fork(self) -> None:
        """Make the outbox usable in a child process, which does not send what its parent sends."""

    def close(self) -> None:
        """Release the file, if there is one. The outbox can be used again."""


class MemoryOutbox:
    """Keeps rows in memory. They are lost with the process.

    Args:
        max_rows: Most rows that wait.

    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._next = 0
        self._rows: dict[int, tuple[Kind, bytes]] = {}
        self._taken: set[int] = set()
        self._refused: deque[Refusal] = deque(maxlen=KEPT_REFUSALS)

    def put(self, kind: Kind, row: bytes) -> None:
        """Add a row; see `Outbox.put`."""
        with self._lock:
            if len(self._rows) >= self._max_rows:
                raise OutboxFull(f"{self._max_rows} rows wait to be sent")
            self._rows[self._next] = (kind, row)
            self._next += 1

    def take(self, most: int) -> list[Item]:
        """Return rows; see `Outbox.take`."""
        with self._lock:
            found = [number for number in self._rows if number not in self._taken][:most]
            self._taken.update(found)
            return [_item(number, *self._rows[number]) for number in found]

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove rows that were sent."""
        with self._lock:
            for number in numbers:
                self._rows.pop(number, None)
                self._taken.discard(number)

    def release(self, numbers: Iterable[int]) -> None:
        """Let rows wait again."""
        with self._lock:
            self._taken.difference_update(numbers)

    def refuse(self, item: Item, reason: str) -> None:
        """Move a row to the refused ones."""
        self.remove([item.number])
        self._refused.append(Refusal(item.kind, item.row, reason))

    def waiting(self) -> int:
        """Return how many rows wait."""
        return len(self._rows)

    def refused(self) -> list[Refusal]:
        """Return the newest refused rows."""
        return list(self._refused)

    def after_fork(self) -> None:
        """Forget the parent's rows."""
        self._lock = threading.Lock()
        self._rows.clear()
        self._taken.clear()

    def close(self) -> None:
        """Do nothing."""


class FileOutbox:
    """Keeps rows in an SQLite file.

    Several processes may use one file; a row that one took and did not send is sent by another after `LEASE_S` seconds.
    A row that `put` has added outlives the process, also if it is killed; of a machine that loses power the newest ones
    may be lost.

    Args:
        path: The file. Its folder is created.
        max_bytes: Size at which the outbox is full.

    Raises:
        OSError: The folder cannot be created.

    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._opened: sqlite3.Connection | None = None
        self._inherited: sqlite3.Connection | None = None

    def put(self, kind: Kind, row: bytes) -> None:
        """Add a row; see `Outbox.put`. Takes at most `LOCK_S` seconds."""
        try:
            with self._transaction() as database:
                if _used_bytes(database) + len(row) > self._max_bytes:
                    raise OutboxFull(f"{self._path} has reached its limit of {self._max_bytes} bytes")
                database.execute("INSERT INTO waiting (kind, row) VALUES (?, ?)", (kind, row))
        except sqlite3.Error as error:
            raise OutboxFull(f"{self._path} cannot be written: {error}") from error

    def take(self, most: int) -> list[Item]:
        """Return rows; see `Outbox.take`. None if other processes keep the file locked."""
        now = time.time()
        try:
            with self._transaction() as database:
                rows = database.execute(
                    "SELECT number, kind, row FROM waiting WHERE taken_until < ? ORDER BY number LIMIT ?",
                    (now, most),
                ).fetchall()
                database.executemany(
                    "UPDATE waiting SET taken_until = ? WHERE number = ?",
                    [(now + LEASE_S, row[0]) for row in rows],
                )
        except sqlite3.OperationalError:
            return []
        return [_item(*row) for row in rows]

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove rows that were sent. If that fails, they are sent once more after `LEASE_S` seconds."""
        self._change("DELETE FROM waiting WHERE number = ?", numbers)

    def release(self, numbers: Iterable[int]) -> None:
        """Let rows wait again."""
        self._change("UPDATE waiting SET taken_until = 0 WHERE number = ?", numbers)

    def refuse(self, item: Item, reason: str) -> None:
        """Move a row to the refused ones."""
        try:
            with self._transaction() as database:
                database.execute(
                    "INSERT OR REPLACE INTO refused SELECT number, kind, row, ?, ? FROM waiting WHERE number = ?",
                    (reason, time.time(), item.number),
                )
                database.execute("DELETE FROM waiting WHERE number = ?", (item.number,))
                database.execute(
                    "DELETE FROM refused WHERE number NOT IN (SELECT number FROM refused ORDER BY number DESC LIMIT ?)",
                    (KEPT_REFUSALS,),
                )
        except sqlite3.OperationalError:
            return  # it is refused again after `LEASE_S` seconds

    def waiting(self) -> int:
        """Return how many rows of all processes wait."""
        with self._lock:
            return int(self._connection().execute("SELECT COUNT(*) FROM waiting").fetchone()[0])

    def refused(self) -> list[Refusal]:
        """Return the newest refused rows."""
        with self._lock:
            query = "SELECT kind, row, reason FROM refused ORDER BY number"
            rows = self._connection().execute(query).fetchall()
        return [Refusal(kind, json.loads(row), reason) for kind, row, reason in rows]

    def after_fork(self) -> None:
        """Open the file again at the next call. Closing the parent's connection would release the parent's locks."""
        self._lock = threading.Lock()
        self._inherited, self._opened = self._opened, None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
            self._opened = None

    def _change(self, statement: str, numbers: Iterable[int]) -> None:
        try:
            with self._transaction() as database:
                database.executemany(statement, [(number,) for number in numbers])
        except sqlite3.OperationalError:
            return  # the lease ends by itself

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            database = self._connection()
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            database = sqlite3.connect(
                self._path, timeout=LOCK_S, isolation_level=None, check_same_thread=False
            )
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.executescript(_SCHEMA)
            self._opened = database
        return self._opened


def _used_bytes(database: sqlite3.Connection) -> int:
    """Return the size of the file without its free pages."""

    def pragma(name: str) -> int:
        return int(database.execute(f"PRAGMA {name}").fetchone()[0])

    return (pragma("page_count") - pragma("freelist_count")) * pragma("page_size")


def _item(number: int, kind: Kind, row: bytes) -> Item:
    return Item(number, kind, json.loads(row))
