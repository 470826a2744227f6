"""Rows of all batches in SQLite, stored together with the positions read.

The log may redeliver, compact, and reorder across partitions. The table is a function of the set of
(batch_id, rewrite) read (I4, I5): a higher rewrite replaces all rows of its batch, the newest revision of a response is
the current example, and a `retract` removes it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shared.events import Batch, ExampleRevision, to_ms
from shared.ports import Position


@dataclass(frozen=True, slots=True)
class Example:
    """The newest revision of a response, and the batch that contains it."""

    revision: ExampleRevision
    partition: int
    number: int
    cut_ms: int
    released: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """event_id -> checks that an operator released it from (`commands/quarantine_release.py`)."""
    release: int = 0
    """Number of the newest of these releases."""

    def is_new(self, through: Mapping[str, int], released: int | None = None) -> bool:
        """Return whether a run with these limits did not read it: a newer batch, or a release after `released`."""
        newly_released = released is not None and self.release > released
        return newly_released or self.number > through.get(str(self.partition), 0)


def store_batch(db: sqlite3.Connection, batch: Batch) -> bool:
    """Store a batch within the caller's transaction; return False if the table has this or a higher rewrite of it.

    Its responses are then to be counted again (`feedback_counts.py`).
    """
    stored = db.execute("SELECT rewrite FROM batches WHERE batch_id = ?", (batch.batch_id,)).fetchone()
    if stored is not None and stored[0] >= batch.rewrite:
        return False
    db.execute(
        "INSERT OR IGNORE INTO uncounted SELECT response_id FROM rows WHERE batch_id = ?", (batch.batch_id,)
    )
    db.execute("DELETE FROM rows WHERE batch_id = ?", (batch.batch_id,))
    db.execute(
        "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?, ?)",
        (batch.batch_id, batch.partition, batch.number, batch.rewrite, to_ms(batch.cut_at)),
    )
    db.executemany(
        "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)",
        [(batch.batch_id, e.response_id, e.revision, e.op, e.to_json()) for e in batch.examples],
    )
    db.executemany("INSERT OR IGNORE INTO uncounted VALUES (?)", [(e.response_id,) for e in batch.examples])
    return True


def store_positions(db: sqlite3.Connection, positions: Mapping[Position, int]) -> None:
    """Store the next offset of each partition, within the caller's transaction."""
    db.executemany(
        "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
        [(topic, partition, offset) for (topic, partition), offset in positions.items()],
    )


def positions(db: sqlite3.Connection) -> dict[Position, int]:
    """Return the next offset to read of each partition."""
    return {(topic, part): offset for topic, part, offset in db.execute("SELECT * FROM positions")}


def through(db: sqlite3.Connection) -> dict[str, int]:
    """Return the highest batch number of each partition."""
    rows = db.execute("SELECT partition, MAX(number) FROM batches GROUP BY partition ORDER BY partition")
    return {str(partition): number for partition, number in rows}


def current_examples(
    db: sqlite3.Connection, upto: Mapping[str, int], released: int | None = None
) -> Iterator[Example]:
    """Yield the newest revision of each response that is not retracted, in order of response_id.

    Only batches within `upto` (partition -> number) and releases up to the number `released` count (None: all
    releases). If two batches contained one revision, which I2 excludes, the lower position would count.
    """
    rows = db.execute(
        "SELECT r.response_id, r.example, r.op, b.partition, b.number, b.cut_ms "
        "FROM rows r JOIN batches b USING (batch_id) "
        "ORDER BY r.response_id, r.revision DESC, b.partition, b.number"
    )
    passes = _released(db, released)
    before = None
    for response_id, blob, op, partition, number, cut_ms in rows:
        if response_id == before or number > upto.get(str(partition), 0):
            continue
        before = response_id
        if op != "retract":
            events, release = passes.get(response_id, ({}, 0))
            yield Example(ExampleRevision.from_json(blob), partition, number, cut_ms, events, release)


def current_example(db: sqlite3.Connection, response_id: str) -> Example | None:
    """Return the newest revision of a response over all batches, or None if it is retracted or in no batch."""
    row = db.execute(
        "SELECT r.example, r.op, b.partition, b.number, b.cut_ms FROM rows r JOIN batches b USING (batch_id) "
        "WHERE r.response_id = ? ORDER BY r.revision DESC, b.partition, b.number LIMIT 1",
        (response_id,),
    ).fetchone()
    if row is None or row[1] == "retract":
        return None
    blob, _, partition, number, cut_ms = row
    events, release = _released(db, None, response_id).get(response_id, ({}, 0))
    return Example(ExampleRevision.from_json(blob), partition, number, cut_ms, events, release)


def _released(
    db: sqlite3.Connection, upto: int | None, response_id: str | None = None
) -> dict[str, tuple[dict[str, frozenset[str]], int]]:
    """Return response_id -> (event_id -> released checks, number of the newest release); optionally of one response."""
    found: dict[str, tuple[dict[str, frozenset[str]], int]] = {}
    condition = "" if response_id is None else "AND response_id = ?"
    rows = db.execute(
        "SELECT response_id, event_id, passes, number FROM releases "  # noqa: S608 - constants
        f"WHERE number <= COALESCE(?, number) {condition} ORDER BY number",
        (upto,) if response_id is None else (upto, response_id),
    )
    for name, event_id, passes, number in rows:
        events, _ = found.get(name, ({}, 0))
        events[event_id] = events.get(event_id, frozenset()) | {passes}
        found[name] = (events, number)
    return found


def has_signal(db: sqlite3.Connection, response_id: str, revision: int, event_id: str, user_id: str) -> bool:
    """Return whether a batch, in its current rewrite, contains this event in this revision of the response."""
    found = db.execute(
        "SELECT example FROM rows WHERE response_id = ? AND revision = ?", (response_id, revision)
    )
    return any(
        (signal.event_id, signal.user_id) == (event_id, user_id)
        for (blob,) in found
        for signal in ExampleRevision.from_json(blob).signals
    )


def has_signal_of_event(db: sqlite3.Connection, response_id: str, event_id: str) -> bool:
    """Return whether any batch, in its current rewrite, contains this event."""
    found = db.execute("SELECT example FROM rows WHERE response_id = ?", (response_id,))
    return any(
        signal.event_id == event_id for (blob,) in found for signal in ExampleRevision.from_json(blob).signals
    )


def has_rewrites(db: sqlite3.Connection) -> bool:
    """Return whether an erasure ever rewrote a batch."""
    return db.execute("SELECT 1 FROM batches WHERE rewrite > 0 LIMIT 1").fetchone() is not None


def batch_count(db: sqlite3.Connection) -> int:
    """Return the number of batches stored."""
    return int(db.execute("SELECT COUNT(*) FROM batches").fetchone()[0])
