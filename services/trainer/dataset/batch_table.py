"""Every row of every batch, kept with the positions read: a crash between the two is impossible.

The log may redeliver, compact and reorder across partitions; what is kept is a function of the set of
(batch_id, rewrite) seen (I4, I5): a higher rewrite replaces all rows of its batch, the newest revision of a response
is the example, `retract` takes it out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from shared.events import Batch, ExampleRevision, to_ms
from shared.ports import Position


@dataclass(frozen=True, slots=True)
class Example:
    """The newest revision of a response, and the batch that brought it."""

    revision: ExampleRevision
    partition: int
    number: int
    cut_ms: int
    released: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """event_id -> the checks that an operator lets it pass (`quarantine_release.py`)."""
    release: int = 0
    """The number of the newest of these releases."""

    def is_new(self, through: Mapping[str, int], released: int | None = None) -> bool:
        """Whether its batch was not yet read for the snapshot that went `through`, or it was released after
        `released`."""
        newly = released is not None and self.release > released
        return newly or self.number > through.get(str(self.partition), 0)


def store_batch(db: sqlite3.Connection, batch: Batch) -> bool:
    """Adds or replaces a batch inside the caller's transaction. False if this rewrite, or a higher one, is there."""
    found = db.execute("SELECT rewrite FROM batches WHERE batch_id = ?", (batch.batch_id,)).fetchone()
    if found is not None and found[0] >= batch.rewrite:
        return False
    db.execute("DELETE FROM rows WHERE batch_id = ?", (batch.batch_id,))
    db.execute(
        "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?, ?)",
        (batch.batch_id, batch.partition, batch.number, batch.rewrite, to_ms(batch.cut_at)),
    )
    db.executemany(
        "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)",
        [(batch.batch_id, e.response_id, e.revision, e.op, e.to_json()) for e in batch.examples],
    )
    return True


def store_positions(db: sqlite3.Connection, positions: Mapping[Position, int]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
        [(topic, partition, offset) for (topic, partition), offset in positions.items()],
    )


def positions(db: sqlite3.Connection) -> dict[Position, int]:
    return {(topic, part): offset for topic, part, offset in db.execute("SELECT * FROM positions")}


def through(db: sqlite3.Connection) -> dict[str, int]:
    """Partition -> highest batch number kept."""
    rows = db.execute("SELECT partition, MAX(number) FROM batches GROUP BY partition ORDER BY partition")
    return {str(partition): number for partition, number in rows}


def current_examples(
    db: sqlite3.Connection, upto: Mapping[str, int], released: int | None = None
) -> list[Example]:
    """The view: per response its newest revision within the batches `upto`, none that was retracted; by response_id.
    With what operators released, up to the release of this number (None: all).

    Should two batches hold one revision (I2 says they do not), the one with the smaller position stands.
    """
    rows = db.execute(
        "SELECT r.example, r.op, b.partition, b.number, b.cut_ms FROM rows r JOIN batches b USING (batch_id) "
        "ORDER BY r.response_id, r.revision DESC, b.partition, b.number"
    )
    passes = _released(db, released)
    newest: dict[str, Example | None] = {}
    for blob, op, partition, number, cut_ms in rows:
        if number > upto.get(str(partition), 0):
            continue
        revision = ExampleRevision.from_json(blob)
        events, release = passes.get(revision.response_id, ({}, 0))
        example = Example(revision, partition, number, cut_ms, events, release)
        newest.setdefault(revision.response_id, None if op == "retract" else example)
    return [example for example in newest.values() if example is not None]


def _released(db: sqlite3.Connection, upto: int | None) -> dict[str, tuple[dict[str, frozenset[str]], int]]:
    """response_id -> (event_id -> checks, the newest number)"""
    found: dict[str, tuple[dict[str, frozenset[str]], int]] = {}
    rows = db.execute(
        "SELECT response_id, event_id, passes, number FROM releases WHERE number <= COALESCE(?, number) "
        "ORDER BY number",
        (upto,),
    )
    for response_id, event_id, passes, number in rows:
        events, _ = found.get(response_id, ({}, 0))
        events[event_id] = events.get(event_id, frozenset()) | {passes}
        found[response_id] = (events, number)
    return found


def has_signal(db: sqlite3.Connection, response_id: str, revision: int, event_id: str, user_id: str) -> bool:
    """Whether a batch, as it is now, has this event in this revision of this response."""
    found = db.execute(
        "SELECT example FROM rows WHERE response_id = ? AND revision = ?", (response_id, revision)
    )
    return any(
        (signal.event_id, signal.user_id) == (event_id, user_id)
        for (blob,) in found
        for signal in ExampleRevision.from_json(blob).signals
    )


def has_signal_of_event(db: sqlite3.Connection, response_id: str, event_id: str) -> bool:
    """Whether any batch, as it is now, has this event."""
    found = db.execute("SELECT example FROM rows WHERE response_id = ?", (response_id,))
    return any(
        signal.event_id == event_id for (blob,) in found for signal in ExampleRevision.from_json(blob).signals
    )


def has_rewrites(db: sqlite3.Connection) -> bool:
    """Whether anything was ever taken out of a batch."""
    return db.execute("SELECT 1 FROM batches WHERE rewrite > 0 LIMIT 1").fetchone() is not None


def batch_count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT COUNT(*) FROM batches").fetchone()[0])
