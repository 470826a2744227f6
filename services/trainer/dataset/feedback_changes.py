"""Changes of the table `feedback` and of its counts, response by response (`feedback_counts.py` has the tables)."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset import batch_table
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import RELEASABLE, Row, check_of, first_fault_by_objective
from services.trainer.dataset.row_selection import content_key, repeat_reason, split_by_holdout
from services.trainer.dataset.signal_rows import rows_of
from shared.events import canonical_json
from shared.feedback_kinds import KIND_BY_NAME

NO_LABEL: Final = -1
EXAMPLES: Final = "examples"
"""Name of the number of current examples in `count_state`."""
RELEASABLE_ROWS: Final = "releasable"
"""Name of the number of rows that operators may release in `count_state`."""
_COLUMNS: Final = (
    "response_id, position, event_id, identity, user_id, kind, label, content, occurred_ms, reason, releasable, "
    "trains, partition, number, cut_ms, release, is_new"
)


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


@dataclass(slots=True)
class Changes:
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
            self.numbers[EXAMPLES] += changed.rowcount
        else:
            changed = self.db.execute("DELETE FROM counted_examples WHERE response_id = ?", (response_id,))
            self.numbers[EXAMPLES] -= changed.rowcount

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
            self.numbers[RELEASABLE_ROWS] += sign * releasable
            return
        self.totals[trains, kind, label, is_new] += sign
        if trains and is_new:
            self.users[user_id, int(label == 0)] += sign


def _digest_of(row: Row) -> bytes:
    """Return a digest of what two rows of a user share if they repeat."""
    parts = [sorted(part) if isinstance(part, frozenset) else part for part in content_key(row)]
    return hashlib.blake2b(canonical_json(parts), digest_size=16).digest()
