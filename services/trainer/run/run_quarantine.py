"""What the newest run quarantined by checks that only a run makes, such as agreement of users.

Rows of checks that operators may overrule are left out once their event is gone or was released from the check.
The checks of single rows are not here: `dataset/feedback_counts.py` has their present results.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from services.trainer.dataset.filters import RELEASABLE, QuarantinedRow, check_of
from services.trainer.run import run_table

RUN_CHECKS: Final = frozenset({"agreement", "share", "reserved", "held out", "tokens"})
"""Checks that only a run makes."""
_CHECK: Final = "substr(q.reason, 1, instr(q.reason || ':', ':') - 1)"
_CAN_BE_RELEASED: Final = (
    f"{_CHECK} IN (SELECT value FROM json_each(:releasable)) "  # noqa: S608 - constants
    "AND EXISTS (SELECT 1 FROM feedback AS f WHERE f.response_id = q.response_id AND f.event_id = q.event_id) "
    "AND NOT EXISTS (SELECT 1 FROM releases AS r WHERE r.response_id = q.response_id AND r.event_id = q.event_id "
    f"AND r.passes = {_CHECK})"
)
_PARAMETERS: Final = {"releasable": json.dumps(sorted(RELEASABLE & RUN_CHECKS))}


def store(db: sqlite3.Connection, run_id: str, rows: Iterable[tuple[str, str, str]]) -> None:
    """Store what a run's snapshot quarantined by `RUN_CHECKS`, of all (response_id, event_id, reason)."""
    with db:
        db.executemany(
            "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?)",
            [(run_id, *row) for row in rows if check_of(row[2]) in RUN_CHECKS],
        )


def reason_counts(db: sqlite3.Connection) -> dict[str, int]:
    """Return how many rows of the newest run are quarantined, by reason."""
    rows = db.execute(
        f"SELECT q.reason, COUNT(*) FROM quarantine AS q WHERE q.run_id = :run_id "  # noqa: S608 - constants
        f"AND ({_CHECK} NOT IN (SELECT value FROM json_each(:releasable)) OR ({_CAN_BE_RELEASED})) "
        "GROUP BY q.reason",
        _PARAMETERS | {"run_id": run_table.newest_with_snapshot(db)},
    )
    return dict(rows)


def releasable(
    db: sqlite3.Connection, limit: int, response_ids: Sequence[str] | None = None
) -> list[QuarantinedRow]:
    """Return the first rows that can be released by response, event and reason; optionally of these responses only."""
    named = "AND q.response_id IN (SELECT value FROM json_each(:responses)) "
    rows = db.execute(
        "SELECT q.response_id, q.event_id, q.reason FROM quarantine AS q "  # noqa: S608 - constants
        f"WHERE q.run_id = :run_id AND {_CAN_BE_RELEASED} {'' if response_ids is None else named}"
        "ORDER BY q.response_id, q.event_id LIMIT :limit",
        _PARAMETERS
        | {
            "run_id": run_table.newest_with_snapshot(db),
            "responses": json.dumps(list(response_ids or ())),
            "limit": limit,
        },
    )
    return [QuarantinedRow(*row) for row in rows]
