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

The tables are a function of the batch table, the releases, the checks and the limits. Changed checks count everything
again, in portions (`count_stale`), so the service reads on meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset import batch_table
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import (
    RELEASABLE,
    QuarantinedRow,
    Row,
    check_of,
    content_key,
    first_fault_by_objective,
    repeat_reason,
    rows_of,
    split_by_holdout,
)
from shared import events, feedback_kinds
from shared.events import canonical_json, sha256
from shared.feedback_kinds import ITEM, KIND_BY_NAME, LABELLED_PAIR

NO_LABEL: Final = -1
MAX_INTEGER: Final = 2**63 - 1
_CHECKS: Final = "checks"
_LIMITS: Final = "limits"
_EXAMPLES: Final = "examples"
_RELEASABLE: Final = "releasable"
_COLUMNS: Final = (
    "response_id, position, event_id, identity, user_id, kind, label, content, occurred_ms, reason, releasable, "
    "trains, partition, number, cut_ms, release, is_new"
)
_COUNTED_AS_NEW: Final = "is_new = 1 AND reason IS NULL AND trains = 1"
"""Condition of the partial indexes in `database.py`."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the last run read: rows of later batches and of later releases are new.

    `released` is None if releases make nothing new, as for a trainer that only exports.
    """

    through: Mapping[str, int] = field(default_factory=dict)
    released: int | None = 0

    def to_json(self) -> str:
        """Return the limits as JSON, equal for equal limits."""
        return json.dumps([dict(self.through), self.released], sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Limits:
        """Return the limits that `to_json` wrote."""
        through, released = json.loads(text)
        return cls(through, released)


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
        items = sum(n for (kind, _), n in self.heldout.items() if KIND_BY_NAME[kind].matcher == ITEM)
        pairs = sum(
            n
            for (kind, _), n in self.heldout.items()
            if (matcher := KIND_BY_NAME[kind].matcher) is not None and matcher.how == "pair"
        )
        labels: Counter[int] = Counter()
        for (kind, label), n in self.heldout.items():
            if KIND_BY_NAME[kind].matcher == LABELLED_PAIR:
                labels[label] += n
        return items + pairs + min(labels[0], labels[1])


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
    changes = _Changes(db, line, comments, max_tokens, _limits(db))
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


@dataclass(slots=True)
class _Changes:
    """Changes of `feedback` within one transaction, and the differences that they make to the counts."""

    db: sqlite3.Connection
    line: str
    comments: CommentMode
    max_tokens: int | None
    limits: Limits
    totals: Counter[tuple[int, str, int, int]] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    users: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(user_id, whether disliked) -> difference."""
    numbers: Counter[str] = field(default_factory=Counter)

    def recount(self, response_id: str) -> None:
        """Replace the rows of a response by those of its current example."""
        contents = self._remove_rows(response_id)
        example = batch_table.current_example(self.db, response_id)
        self._count_example(response_id, counts=example is not None)
        if example is not None:
            contents |= self._add_rows(example)
        for content in contents:
            self._elect(content)

    def store(self) -> None:
        """Add the differences to the stored counts."""
        add = self.db.executemany
        add(
            "INSERT INTO feedback_totals VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET rows = rows + excluded.rows",
            [(*key, n) for key, n in self.totals.items() if n],
        )
        add(
            "INSERT INTO feedback_reasons VALUES (?, ?) ON CONFLICT DO UPDATE SET rows = rows + excluded.rows",
            [(reason, n) for reason, n in self.reasons.items() if n],
        )
        add(
            "INSERT INTO new_users VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET rows = rows + excluded.rows, disliked = disliked + excluded.disliked",
            [(user, n, n * disliked) for (user, disliked), n in self.users.items() if n],
        )
        add(
            "INSERT INTO count_state VALUES (?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value",
            [(name, n) for name, n in self.numbers.items() if n],
        )
        add(
            "DELETE FROM feedback_reasons WHERE reason = ? AND rows = 0",
            [(reason,) for reason in self.reasons],
        )
        add("DELETE FROM new_users WHERE user_id = ? AND rows = 0", [(user,) for user, _ in self.users])

    def _count_example(self, response_id: str, *, counts: bool) -> None:
        if counts:
            changed = self.db.execute("INSERT OR IGNORE INTO counted_examples VALUES (?)", (response_id,))
            self.numbers[_EXAMPLES] += changed.rowcount
        else:
            changed = self.db.execute("DELETE FROM counted_examples WHERE response_id = ?", (response_id,))
            self.numbers[_EXAMPLES] -= changed.rowcount

    def _remove_rows(self, response_id: str) -> set[bytes]:
        """Remove the rows of a response. Return the contents that may need another row."""
        rows = self.db.execute(
            "SELECT content, reason, releasable, trains, kind, label, is_new, user_id FROM feedback "
            "WHERE response_id = ?",
            (response_id,),
        ).fetchall()
        for _, reason, *rest in rows:
            self._add(-1, reason, *rest)
        if rows:
            self.db.execute("DELETE FROM feedback WHERE response_id = ?", (response_id,))
        return {content for content, *_ in rows if content is not None}

    def _add_rows(self, example: Example) -> set[bytes]:
        """Add the rows of an example. Usable ones count as duplicates until `_elect`. Return their contents."""
        rows, never_train = rows_of(example, self.comments)
        contents: set[bytes] = set()
        for position, row in enumerate(rows):
            fault = first_fault_by_objective(row, max_tokens=self.max_tokens)
            content = None if fault is not None else _digest_of(row)
            contents |= set() if content is None else {content}
            self._insert(
                example, position, row, content, fault if fault is not None else repeat_reason(row.objective)
            )
        for position, one in enumerate(never_train, len(rows)):
            self._insert_fields(
                example,
                (one.response_id, position, one.event_id, "", "", ""),
                (NO_LABEL, None, 0, one.reason, 0),
            )
        return contents

    def _insert(self, example: Example, position: int, row: Row, content: bytes | None, reason: str) -> None:
        trains = bool(split_by_holdout(self.line, [row])[0])
        label = NO_LABEL if row.label is None else int(row.label)
        self._insert_fields(
            example,
            (row.response_id, position, row.event_id, row.identity, row.user_id, row.kind),
            (label, content, row.occurred_ms, reason, int(trains)),
        )

    def _insert_fields(
        self,
        example: Example,
        names: tuple[str, int, str, str, str, str],
        values: tuple[int, bytes | None, int, str, int],
    ) -> None:
        label, content, occurred_ms, reason, trains = values
        releasable = int(check_of(reason) in RELEASABLE)
        is_new = int(example.is_new(self.limits.through, self.limits.released))
        self.db.execute(
            f"INSERT INTO feedback ({_COLUMNS}) VALUES ({', '.join('?' * 17)})",  # noqa: S608 - constants
            (
                *names,
                label,
                content,
                occurred_ms,
                reason,
                releasable,
                trains,
                example.partition,
                example.number,
                example.cut_ms,
                example.release,
                is_new,
            ),
        )
        self._add(1, reason, releasable, trains, names[5], label, is_new, names[4])

    def _elect(self, content: bytes) -> None:
        """Make the newest row of this content the usable one, and the others duplicates."""
        newest = self.db.execute(
            "SELECT rowid FROM feedback WHERE content = ? "
            "ORDER BY occurred_ms DESC, identity DESC, position DESC LIMIT 1",
            (content,),
        ).fetchone()
        usable = self.db.execute(
            "SELECT rowid FROM feedback WHERE content = ? AND reason IS NULL", (content,)
        ).fetchone()
        if newest == usable:
            return
        if usable is not None:
            self._turn(usable[0], usable_now=False)
        if newest is not None:
            self._turn(newest[0], usable_now=True)

    def _turn(self, rowid: int, *, usable_now: bool) -> None:
        kind, trains, label, is_new, user_id, reason = self.db.execute(
            "SELECT kind, trains, label, is_new, user_id, reason FROM feedback WHERE rowid = ?", (rowid,)
        ).fetchone()
        after = None if usable_now else repeat_reason(KIND_BY_NAME[kind].objective)
        self.db.execute("UPDATE feedback SET reason = ? WHERE rowid = ?", (after, rowid))
        self._add(-1, reason, 0, trains, kind, label, is_new, user_id)
        self._add(1, after, 0, trains, kind, label, is_new, user_id)

    def _add(
        self,
        sign: int,
        reason: str | None,
        releasable: int,
        trains: int,
        kind: str,
        label: int,
        is_new: int,
        user_id: str,
    ) -> None:
        if reason is not None:
            self.reasons[reason] += sign
            self.numbers[_RELEASABLE] += sign * releasable
            return
        self.totals[trains, kind, label, is_new] += sign
        if trains and is_new:
            self.users[user_id, int(label == 0)] += sign


def _digest_of(row: Row) -> bytes:
    """Return a digest of what two rows of a user share if they repeat."""
    parts = [sorted(part) if isinstance(part, frozenset) else part for part in content_key(row)]
    return hashlib.blake2b(canonical_json(parts), digest_size=16).digest()


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
    return int(_state(db, _EXAMPLES) or 0)


def reason_counts(db: sqlite3.Connection) -> dict[str, int]:
    """Return how many rows do not train by themselves, by reason, in order of the reasons."""
    return dict(db.execute("SELECT reason, rows FROM feedback_reasons ORDER BY reason"))


def releasable_count(db: sqlite3.Connection) -> int:
    """Return how many rows a check of single rows quarantined from which operators may release them."""
    return int(_state(db, _RELEASABLE) or 0)


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
