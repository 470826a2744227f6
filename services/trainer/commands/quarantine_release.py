"""What operators let train after all: examples that a check held back pass it from the next run on.

A release is of one event and one check. It names no text, says nothing of any other check, and ends with the event:
what an erasure takes out of the batches is released no more, should it ever come again.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset import batch_table
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import RELEASABLE, Held, check_of, usable
from services.trainer.run import run_table


def store_request(db: sqlite3.Connection, command_id: str, response_ids: Iterable[str]) -> None:
    """What a command asks for, inside the caller's transaction."""
    db.executemany(
        "INSERT OR IGNORE INTO release_orders VALUES (?, ?)",
        [(command_id, response_id) for response_id in response_ids],
    )


def requested_responses(db: sqlite3.Connection, command_id: str) -> list[str]:
    """The responses that a command names."""
    rows = db.execute("SELECT response_id FROM release_orders WHERE command_id = ?", (command_id,))
    return [response_id for (response_id,) in rows]


def newest_release(db: sqlite3.Connection) -> int:
    """The number of the last release; they only grow."""
    return int(db.execute("SELECT COALESCE(MAX(number), 0) FROM releases").fetchone()[0])


def releasable_now(db: sqlite3.Connection, comments: CommentMode) -> list[Held]:
    """What is held now and can be released. What is disputed among users is known since the newest run."""
    examples = batch_table.dataset(db, batch_table.through(db))
    return releasable(
        examples, [*usable(examples, comments)[1], *(Held(*one) for one in run_table.newest_quarantine(db))]
    )


def releasable(examples: Sequence[Example], held: Iterable[Held]) -> list[Held]:
    """Each once, in order, of events that stand and were not released from that check before."""
    standing = {
        (one.revision.response_id, signal.event_id): one.released.get(signal.event_id, frozenset())
        for one in examples
        for signal in one.revision.signals
    }
    found = {
        one
        for one in held
        if check_of(one.reason) in RELEASABLE
        and check_of(one.reason) not in standing.get((one.response_id, one.event_id), RELEASABLE)
    }
    return sorted(found, key=lambda one: (one.response_id, one.event_id, one.reason))


def release(db: sqlite3.Connection, response_ids: Iterable[str], held: Iterable[Held]) -> tuple[bool, str]:
    """Releases what of `held` belongs to these responses, inside the caller's transaction. Returns whether there was
    any, and what to say of it."""
    wanted = set(response_ids)
    found = [one for one in held if one.response_id in wanted]
    db.executemany(
        "INSERT OR IGNORE INTO releases (response_id, event_id, passes) VALUES (?, ?, ?)",
        [(one.response_id, one.event_id, check_of(one.reason)) for one in found],
    )
    if not found:
        return False, f"none of these {len(wanted)} responses has anything held that can be released"
    counts = Counter(one.reason for one in found)
    told = ", ".join(f"{count} ({reason})" for reason, count in sorted(counts.items()))
    of = f"{len({one.response_id for one in found})} of {len(wanted)} responses"
    return True, f"released {told}, of {of}; they count from the next run on"


def remove_orphaned(db: sqlite3.Connection) -> int:
    """Ends the releases of events that no batch holds any more; returns how many. Inside the caller's transaction."""
    rows = db.execute("SELECT number, response_id, event_id FROM releases").fetchall()
    gone = [
        (number,)
        for number, response_id, event_id in rows
        if not batch_table.has_event(db, response_id, event_id)
    ]
    db.executemany("DELETE FROM releases WHERE number = ?", gone)
    return len(gone)
