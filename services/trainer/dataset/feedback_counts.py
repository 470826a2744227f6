"""Counts of the collected feedback, kept up to date by differences, so that reading them costs nothing.

Each signal of each current example is one row of the table `feedback`, with the result of the checks of single rows
(`filters.py`). What a row's state depends on besides its own example is what its user gave twice: rows with the same
`content` elect the newest, and the others are duplicates. Whether a row is new depends on what the last run read.

| table | content |
| --- | --- |
| `uncounted` | responses whose rows in `feedback` are out of date; writers add them in their own transaction |
| `feedback` | one row per signal of the current examples |
| `feedback_totals` | usable rows by (trains, kind, label, is_new) |
| `feedback_reasons` | rows that do not train, by reason |
| `new_users` | usable new rows that train, by user |
| `count_state` | which checks and which limits the counts are for |

`feedback_changes.py` changes the tables, response by response. They are a function of the batch table, the releases,
the checks and the limits. Changed checks count everything again, in portions (`count_stale`), so the service reads on
meanwhile.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset.feedback_changes import (
    EXAMPLES,
    NO_LABEL,
    RELEASABLE_ROWS,
    Changes,
    Limits,
)
from services.trainer.dataset.filters import QuarantinedRow
from shared import events, feedback_kinds
from shared.events import sha256
from shared.feedback_kinds import FEEDBACK_KINDS, ITEM, KIND_BY_NAME, LABELLED_PAIR

MAX_INTEGER: Final = 2**63 - 1
MAX_USERS_COUNTED: Final = 1000
"""More held-out users are not counted: a gate shows next to nothing more with them."""
_CHECKS: Final = "checks"
_LIMITS: Final = "limits"
_HELD_OUT_SINCE: Final = "is_new IN (0, 1) AND partition = ? AND number > ? AND trains = 0 AND reason IS NULL"
"""Condition that the index by batch serves."""
_COUNTED_AS_NEW: Final = "is_new = 1 AND reason IS NULL AND trains = 1"
"""Condition of the partial indexes in `database.py`."""


@dataclass(frozen=True, slots=True)
class UsableRows:
    """Numbers of usable rows.

    Attributes:
        new: Rows that train and are new.
        new_disliked: Of them, disliked answers, which train only if there are enough labels for KTO.
        all: Rows that train, new or not, by label: liked (1), disliked (0), without a label (-1).
        heldout: Rows of held-out users, by (kind, label).

    """

    new: int = 0
    new_disliked: int = 0
    all: Mapping[int, int] = field(default_factory=dict)
    heldout: Mapping[tuple[str, int], int] = field(default_factory=dict)

    @property
    def gate_items(self) -> int:
        """The most items that a gate can have from these held-out rows, without its limit of pairs.

        A gate has fewer if users repeat or contradict each other, or if the fact of a correction was not trained.
        """
        return self.gate_corrections + sum(self.gate_pairs.values()) + self.gate_likes

    @property
    def gate_corrections(self) -> int:
        """Held-out rows that say what the answer should be."""
        return sum(n for (kind, _), n in self.heldout.items() if KIND_BY_NAME[kind].matcher == ITEM)

    @property
    def gate_pairs(self) -> Mapping[str, int]:
        """The most pairs of a better and a worse answer, by matcher."""
        pairs: Counter[str] = Counter()
        labels: Counter[int] = Counter()
        for (kind, label), n in self.heldout.items():
            matcher = KIND_BY_NAME[kind].matcher
            if matcher == LABELLED_PAIR:
                labels[label] += n
            elif matcher is not None and matcher.how == "pair":
                pairs[matcher.name] += n
        pairs[LABELLED_PAIR.name] += min(labels[0], labels[1])
        return pairs

    @property
    def gate_likes(self) -> int:
        """Held-out rows that like an answer, which a candidate must still give."""
        return sum(
            n
            for (kind, label), n in self.heldout.items()
            if label == 1 and KIND_BY_NAME[kind].matcher == LABELLED_PAIR
        )


# --- keeping the counts -----------------------------------------------------------------------------------------


def prepare(db: sqlite3.Connection, comments: CommentMode, max_tokens: int | None = None) -> None:
    """Mark everything as uncounted if the counts are for other checks. Must be called before all other functions.

    `max_tokens`: longest row of a run, as for `filters.first_fault`.
    """
    checks = json.dumps([comments, max_tokens, checks_digest()])
    if _state(db, _CHECKS) == checks:
        return
    with db:
        for table in ("feedback", "feedback_totals", "feedback_reasons", "new_users", "counted_examples"):
            db.execute(f"DELETE FROM {table}")  # noqa: S608 - a constant
        db.execute("DELETE FROM count_state WHERE name != ?", (_LIMITS,))
        db.execute("INSERT OR IGNORE INTO uncounted SELECT DISTINCT response_id FROM rows")
        _set_state(db, _CHECKS, checks)


@cache
def checks_digest() -> str:
    """Return a digest of the code that decides which rows are usable: this package, and the kinds of feedback.

    It covers too much rather than too little: a needless recount costs minutes, once after an upgrade.
    """
    files = [*Path(__file__).parent.glob("*.py"), Path(feedback_kinds.__file__), Path(events.__file__)]
    return sha256(b"".join(file.read_bytes() for file in sorted(files)))


def mark_uncounted(db: sqlite3.Connection, response_ids: Iterable[str]) -> None:
    """Have these responses counted again, inside the caller's transaction."""
    db.executemany(
        "INSERT OR IGNORE INTO uncounted VALUES (?)", [(response_id,) for response_id in response_ids]
    )


def uncounted(db: sqlite3.Connection) -> int:
    """Return how many responses still have to be counted. The counts are complete if there are none."""
    return int(db.execute("SELECT COUNT(*) FROM uncounted").fetchone()[0])


def is_complete(db: sqlite3.Connection) -> bool:
    """Return whether the counts are complete."""
    return db.execute("SELECT 1 FROM uncounted LIMIT 1").fetchone() is None


def count_stale(
    db: sqlite3.Connection, line: str, comments: CommentMode, limit: int, max_tokens: int | None = None
) -> int:
    """Count up to `limit` uncounted responses, inside the caller's transaction. Return how many were counted."""
    stale = [name for (name,) in db.execute("SELECT response_id FROM uncounted LIMIT ?", (limit,)).fetchall()]
    if not stale:
        return 0
    changes = Changes(db, line, comments, max_tokens, _limits(db))
    for response_id in stale:
        changes.recount(response_id)
    changes.store()
    db.executemany("DELETE FROM uncounted WHERE response_id = ?", [(name,) for name in stale])
    return len(stale)


def set_limits(db: sqlite3.Connection, limits: Limits) -> None:
    """Set which rows count as new, in a transaction if that changes anything. Costs as much as rows change."""
    if _state(db, _LIMITS) == limits.to_json():
        return
    with db:
        db.execute("CREATE TEMP TABLE IF NOT EXISTS limits (partition INTEGER PRIMARY KEY, number INTEGER)")
        db.execute("CREATE TEMP TABLE IF NOT EXISTS turned (id INTEGER PRIMARY KEY)")
        db.execute("DELETE FROM limits")
        db.executemany("INSERT INTO limits VALUES (?, ?)", limits.through.items())
        beyond = (
            "(number > COALESCE((SELECT l.number FROM limits AS l WHERE l.partition = feedback.partition), 0)"
        )
        is_new = f"{beyond} OR release > {_released(limits)})"
        for was_new, condition in ((1, f"NOT {is_new}"), (0, is_new)):
            db.execute("DELETE FROM turned")
            db.execute(
                f"INSERT INTO turned SELECT rowid FROM feedback WHERE is_new = {was_new} AND {condition}"  # noqa: S608
            )
            db.execute(
                "INSERT INTO feedback_totals SELECT trains, kind, label, 1 - is_new, COUNT(*) FROM feedback "
                "WHERE rowid IN turned AND reason IS NULL GROUP BY trains, kind, label "
                "ON CONFLICT DO UPDATE SET rows = rows + excluded.rows"
            )
            db.execute(
                "INSERT INTO feedback_totals SELECT trains, kind, label, is_new, -COUNT(*) FROM feedback "
                "WHERE rowid IN turned AND reason IS NULL GROUP BY trains, kind, label "
                "ON CONFLICT DO UPDATE SET rows = rows + excluded.rows"
            )
            db.execute("UPDATE feedback SET is_new = 1 - is_new WHERE rowid IN turned")
        db.execute("DELETE FROM new_users")
        db.execute(
            "INSERT INTO new_users SELECT user_id, COUNT(*), SUM(label = 0) FROM feedback "  # noqa: S608
            f"WHERE {_COUNTED_AS_NEW} GROUP BY user_id"
        )
        db.execute("DELETE FROM turned")
        _set_state(db, _LIMITS, limits.to_json())


def _released(limits: Limits) -> int:
    return MAX_INTEGER if limits.released is None else limits.released


def _limits(db: sqlite3.Connection) -> Limits:
    stored = _state(db, _LIMITS)
    return Limits() if stored is None else Limits.from_json(str(stored))


def _state(db: sqlite3.Connection, name: str) -> str | int | None:
    row = db.execute("SELECT value FROM count_state WHERE name = ?", (name,)).fetchone()
    return None if row is None else row[0]


def _set_state(db: sqlite3.Connection, name: str, value: str) -> None:
    db.execute("INSERT OR REPLACE INTO count_state VALUES (?, ?)", (name, value))


# --- reading the counts -----------------------------------------------------------------------------------------


def usable_rows(db: sqlite3.Connection) -> UsableRows:
    """Return the numbers of usable rows."""
    new: Counter[int] = Counter()
    training: Counter[int] = Counter()
    heldout: Counter[tuple[str, int]] = Counter()
    for trains, kind, label, is_new, rows in db.execute("SELECT * FROM feedback_totals"):
        if trains:
            training[label] += rows
            new[label] += rows * is_new
        else:
            heldout[kind, label] += rows
    return UsableRows(new.total(), new[0], dict(training), dict(heldout))


def new_users(db: sqlite3.Connection, *, with_disliked: bool) -> int:
    """Return how many users have usable new rows that train; optionally those with disliked answers only as well."""
    condition = "" if with_disliked else "WHERE rows > disliked"
    return int(db.execute(f"SELECT COUNT(*) FROM new_users {condition}").fetchone()[0])  # noqa: S608 - constants


def heldout_users(db: sqlite3.Connection) -> int:
    """Return how many held-out users have usable rows that a gate can use, at most `MAX_USERS_COUNTED`."""
    kinds = [kind.name for kind in FEEDBACK_KINDS if kind.matcher is not None]
    found = db.execute(
        "SELECT COUNT(*) FROM (SELECT DISTINCT user_id FROM feedback WHERE trains = 0 AND reason IS NULL "
        "AND kind IN (SELECT value FROM json_each(?)) LIMIT ?)",
        (json.dumps(kinds), MAX_USERS_COUNTED),
    ).fetchone()
    return int(found[0])


def held_out_since(db: sqlite3.Connection, through: Mapping[str, int]) -> UsableRows:
    """Return the usable rows of held-out users from batches after `through` (partition -> number)."""
    heldout: Counter[tuple[str, int]] = Counter()
    for (partition,) in db.execute("SELECT DISTINCT partition FROM batches").fetchall():
        rows = db.execute(
            f"SELECT kind, label, COUNT(*) FROM feedback WHERE {_HELD_OUT_SINCE} GROUP BY kind, label",  # noqa: S608
            (partition, through.get(str(partition), 0)),
        )
        for kind, label, count in rows:
            heldout[kind, label] += count
    return UsableRows(heldout=dict(heldout))


def held_out_users_since(db: sqlite3.Connection, through: Mapping[str, int]) -> int:
    """Return how many held-out users have usable rows from batches after `through`, and none from earlier ones."""
    limits = {
        partition: through.get(str(partition), 0)
        for (partition,) in db.execute("SELECT DISTINCT partition FROM batches").fetchall()
    }
    users = {
        user
        for limit in limits.items()
        for (user,) in db.execute(f"SELECT DISTINCT user_id FROM feedback WHERE {_HELD_OUT_SINCE}", limit)  # noqa: S608
    }
    known = {
        user
        for partition, number in limits.items()
        for (user,) in db.execute(
            "SELECT DISTINCT user_id FROM feedback WHERE is_new IN (0, 1) AND partition = ? AND number <= ? "
            "AND trains = 0 AND reason IS NULL",
            (partition, number),
        )
    }
    return len(users - known)


def oldest_new_ms(db: sqlite3.Connection, *, with_disliked: bool) -> int | None:
    """Return when the oldest batch with a usable new row that trains was cut, or None if there is none."""
    oldest = [
        db.execute(
            f"SELECT MIN(cut_ms) FROM feedback WHERE {_COUNTED_AS_NEW} AND label = ?",  # noqa: S608 - constants
            (label,),
        ).fetchone()[0]
        for label in ((NO_LABEL, 0, 1) if with_disliked else (NO_LABEL, 1))
    ]
    return min((ms for ms in oldest if ms is not None), default=None)


def example_count(db: sqlite3.Connection) -> int:
    """Return how many responses have a current example."""
    return int(_state(db, EXAMPLES) or 0)


def reason_counts(db: sqlite3.Connection) -> dict[str, int]:
    """Return how many rows do not train by themselves, by reason, in order of the reasons."""
    return dict(db.execute("SELECT reason, rows FROM feedback_reasons ORDER BY reason"))


def releasable_count(db: sqlite3.Connection) -> int:
    """Return how many rows a check of single rows quarantined from which operators may release them."""
    return int(_state(db, RELEASABLE_ROWS) or 0)


def releasable(
    db: sqlite3.Connection, limit: int, response_ids: Sequence[str] | None = None
) -> list[QuarantinedRow]:
    """Return the first of these rows by response, event and reason; optionally of these responses only."""
    condition = "" if response_ids is None else "AND response_id IN (SELECT value FROM json_each(?))"
    rows = db.execute(
        "SELECT response_id, event_id, reason FROM feedback WHERE releasable = 1 "  # noqa: S608 - constants
        f"{condition} ORDER BY response_id, event_id, reason LIMIT ?",
        (*([] if response_ids is None else [json.dumps(list(response_ids))]), limit),
    )
    return [QuarantinedRow(*row) for row in rows]
