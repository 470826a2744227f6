"""What a connector has sent: in a SQLite file, so that edits and deletions are noticed after a restart."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SentEvent:
    """An event that is in the log, or may be."""

    response_id: str
    user_id: str
    kind: str
    event_id: str

    @property
    def slot(self) -> tuple[str, str, str]:
        """Return what has at most one present event: the newest one."""
        return (self.response_id, self.user_id, self.kind)


@dataclass(frozen=True, slots=True)
class SentFeedback:
    """A feedback object as it was sent last."""

    id: str
    digest: str
    """Digest of its content; empty if it is not known whether all of it was sent."""
    events: tuple[SentEvent, ...]


class SentStore:
    """The feedback objects that were sent, and in which round each was seen last."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        with database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS sent (id TEXT PRIMARY KEY, digest TEXT NOT NULL, "
                "events TEXT NOT NULL, round INTEGER NOT NULL) WITHOUT ROWID"
            )

    def next_round(self) -> int:
        """Return the number of a new round."""
        [newest] = self._database.execute("SELECT coalesce(max(round), 0) FROM sent").fetchone()
        return int(newest) + 1

    def get(self, feedback_id: str) -> SentFeedback | None:
        """Return a feedback object as it was sent last, or None."""
        query = "SELECT id, digest, events FROM sent WHERE id = ?"
        row = self._database.execute(query, (feedback_id,)).fetchone()
        return None if row is None else _sent(row)

    def put(self, sent: Iterable[SentFeedback], round_: int) -> None:
        """Remember feedback objects as sent and seen."""
        rows = [
            (each.id, each.digest, json.dumps([astuple(event) for event in each.events]), round_)
            for each in sent
        ]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?)", rows)

    def mark_seen(self, ids: Iterable[str], round_: int) -> None:
        """Remember that these were still there in a round."""
        with self._database:
            self._database.executemany(
                "UPDATE sent SET round = ? WHERE id = ?", [(round_, feedback_id) for feedback_id in ids]
            )

    def unseen(self, round_: int, limit: int) -> list[SentFeedback]:
        """Return feedback objects that were not seen in a round."""
        query = "SELECT id, digest, events FROM sent WHERE round < ? LIMIT ?"
        return [_sent(row) for row in self._database.execute(query, (round_, limit)).fetchall()]

    def remove(self, ids: Iterable[str]) -> None:
        """Forget feedback objects."""
        with self._database:
            self._database.executemany("DELETE FROM sent WHERE id = ?", [(each,) for each in ids])


def _sent(row: tuple[str, str, str]) -> SentFeedback:
    return SentFeedback(row[0], row[1], tuple(SentEvent(*event) for event in json.loads(row[2])))


@contextmanager
def open_sent_store(path: Path) -> Iterator[SentStore]:
    """Open the file, or create it.

    Raises:
        OSError: The file cannot be created.
        sqlite3.DatabaseError: It is not such a file.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database:
        yield SentStore(database)
