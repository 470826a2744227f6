"""I4, I5: the incremental counts equal a full recount after any sequence of batches, erasures, releases and runs."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.trainer.core.recipe import CommentMode
from services.trainer.database import SCHEMA
from services.trainer.dataset import batch_table, feedback_changes, feedback_counts
from services.trainer.dataset.feedback_changes import Limits
from services.trainer.dataset.feedback_counts import UsableRows
from services.trainer.dataset.filters import RELEASABLE, Row, check_of, count_reasons
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.row_selection import split_by_holdout, usable_rows
from shared.events import Choice, ExampleRevision, Message, Over, Signal
from tests.trainer_factories import LINE, NOW, batch

USERS = [
    next(f"u{i}" for i in range(99) if is_held_out(LINE, f"u{i}")),
    *[f"u{i}" for i in range(99) if not is_held_out(LINE, f"u{i}")][:1],
]
RESPONSES = ("r1", "r2", "r/3", "r%4")
QUESTIONS = ("Who founded Acme?", "Who founded ACME")
ANSWERS = ("Ida Voss.", "ida voss", "Mail ida.voss@example.org")
"""Few users, questions and answers, so that repeats, and the loss of the newest of them, are frequent."""


@dataclass
class Line:
    """A database, what it was given, and the same counts from a full recount."""

    db: sqlite3.Connection
    comments: CommentMode = "hold"
    limits: Limits = field(default_factory=Limits)

    def count(self) -> None:
        with self.db:
            while feedback_counts.count_stale(self.db, LINE, self.comments, 3):
                pass

    def stored(self) -> dict[str, object]:
        return {
            "usable": feedback_counts.usable_rows(self.db),
            "users": tuple(feedback_counts.new_users(self.db, with_disliked=w) for w in (True, False)),
            "oldest": tuple(feedback_counts.oldest_new_ms(self.db, with_disliked=w) for w in (True, False)),
            "examples": feedback_counts.example_count(self.db),
            "reasons": feedback_counts.reason_counts(self.db),
            "releasable": feedback_counts.releasable(self.db, 1000),
            "releasable_count": feedback_counts.releasable_count(self.db),
        }

    def recounted(self) -> dict[str, object]:
        """Return the counts from their definition: the checks of `filters.py` over everything that is collected."""
        examples = list(batch_table.current_examples(self.db, batch_table.through(self.db)))
        rows, quarantined = usable_rows(examples, self.comments)
        training, heldout = split_by_holdout(LINE, rows)
        new_responses = {
            one.revision.response_id: one.cut_ms
            for one in examples
            if one.is_new(self.limits.through, self.limits.released)
        }
        new = [row for row in training if row.response_id in new_responses]
        liked_or_none = [row for row in new if row.label is not False]

        def oldest(some: list[Row]) -> int | None:
            return min((new_responses[row.response_id] for row in some), default=None)

        releasable = sorted(
            (one for one in quarantined if check_of(one.reason) in RELEASABLE),
            key=lambda one: (one.response_id, one.event_id, one.reason),
        )
        return {
            "usable": UsableRows(
                len(new),
                len(new) - len(liked_or_none),
                dict(Counter(label_of(row) for row in training)),
                dict(Counter((row.kind, label_of(row)) for row in heldout)),
            ),
            "users": (len({row.user_id for row in new}), len({row.user_id for row in liked_or_none})),
            "oldest": (oldest(new), oldest(liked_or_none)),
            "examples": len(examples),
            "reasons": count_reasons(quarantined),
            "releasable": releasable,
            "releasable_count": len(releasable),
        }


def label_of(row: Row) -> int:
    return feedback_changes.NO_LABEL if row.label is None else int(row.label)


def without_zeros(counts: dict[str, object]) -> dict[str, object]:
    usable = counts["usable"]
    assert isinstance(usable, UsableRows)
    positive = UsableRows(
        usable.new,
        usable.new_disliked,
        {key: n for key, n in usable.all.items() if n},
        {key: n for key, n in usable.heldout.items() if n},
    )
    return counts | {"usable": positive}


@contextmanager
def line() -> Iterator[Line]:
    db = sqlite3.connect(":memory:")
    db.executescript(SCHEMA)
    feedback_counts.prepare(db, "hold")
    try:
        yield Line(db)
    finally:
        db.close()


@st.composite
def signals(draw: st.DrawFn, response_id: str) -> Signal:
    kind = draw(st.sampled_from(["correction"] * 6 + ["thumbs", "rating", "comment", "preference"]))
    value = {
        "correction": st.sampled_from(ANSWERS),
        "thumbs": st.sampled_from(["up", "down"]),
        "rating": st.integers(1, 5),
        "comment": st.sampled_from(["Say the year too.", "Mail ida.voss@example.org"]),
        "preference": st.sampled_from([Over(over="I do not know."), Over(over="Ida Voss.")]),
    }[kind]
    return Signal(
        event_id=draw(st.sampled_from([f"e-{response_id}", "e/1", "e2"])),
        kind=kind,
        user_id=draw(st.sampled_from(USERS)),
        value=draw(value),
        occurred_at=NOW + timedelta(seconds=draw(st.integers(0, 3))),
        tags=("imported",) if draw(st.integers(0, 9)) == 0 else (),
    )


@st.composite
def revisions(draw: st.DrawFn, response_id: str, number: int) -> ExampleRevision:
    retract = draw(st.integers(0, 5)) == 0
    return ExampleRevision(
        line=LINE,
        response_id=response_id,
        revision=number,
        op="retract" if retract else "upsert",
        version=f"{LINE}@base-00000000",
        messages=(Message(role="user", content=draw(st.sampled_from(QUESTIONS))),),
        choices=(Choice(index=0, text="I do not know."),),
        signals=() if retract else tuple(draw(st.lists(signals(response_id), min_size=1, max_size=3))),
        responded_at=NOW,
        revised_at=NOW,
    )


OPERATIONS = st.sampled_from(
    ["batch", "batch", "batch", "rewrite", "rewrite", "older", "release", "run", "comments"]
)


@given(data=st.data())
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
def test_counts_equal_a_full_recount_after_any_history(data: st.DataObject) -> None:
    with line() as collected:
        stored: list[tuple[int, int, tuple[ExampleRevision, ...]]] = []
        newest = dict.fromkeys(RESPONSES, 0)
        limits = [Limits()]
        for step in range(data.draw(st.integers(3, 12))):
            operation = data.draw(OPERATIONS)
            if operation in ("batch", "older"):
                names = data.draw(st.sets(st.sampled_from(RESPONSES), min_size=1))
                examples = []
                for name in sorted(names):
                    # `older`: a partition that was read late brings a revision that another one has replaced.
                    newest[name] += operation == "batch"
                    number = max(1, newest[name] - (operation == "older"))
                    examples.append(data.draw(revisions(name, number)))
                partition = data.draw(st.integers(0, 1))
                stored.append((partition, step + 1, tuple(examples)))
                one = batch(examples, step + 1, partition=partition, cut_at=NOW + timedelta(seconds=step % 4))
                with collected.db:
                    batch_table.store_batch(collected.db, one)
            elif operation == "rewrite" and stored:
                partition, number, old = data.draw(st.sampled_from(stored))
                kept = [one for one in old if data.draw(st.booleans())]
                with collected.db:
                    batch_table.store_batch(
                        collected.db, batch(kept, number, partition=partition, rewrite=step + 1)
                    )
            elif operation == "release":
                collected.count()
                rows = feedback_counts.releasable(collected.db, 2)
                with collected.db:
                    for row in rows:
                        collected.db.execute(
                            "INSERT OR IGNORE INTO releases (response_id, event_id, passes) VALUES (?, ?, ?)",
                            (row.response_id, row.event_id, check_of(row.reason)),
                        )
                    feedback_counts.mark_uncounted(collected.db, [row.response_id for row in rows])
            elif operation == "run":
                released = collected.db.execute("SELECT COALESCE(MAX(number), 0) FROM releases").fetchone()[0]
                limits.append(Limits(batch_table.through(collected.db), released))
                # A run that an erasure ended gives back what it had read.
                collected.limits = data.draw(st.sampled_from(limits))
                feedback_counts.set_limits(collected.db, collected.limits)
            elif operation == "comments":
                collected.comments = data.draw(st.sampled_from(["hold", "append", "revise"]))
                feedback_counts.prepare(collected.db, collected.comments)
            if data.draw(st.booleans()):
                collected.count()
                assert without_zeros(collected.stored()) == collected.recounted()
        collected.count()
        assert without_zeros(collected.stored()) == collected.recounted()
        assert feedback_counts.is_complete(collected.db)


def test_changed_checks_count_everything_again_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    with line() as collected:
        examples = [revision_of(f"r{i}", ANSWERS[i % 2]) for i in range(7)]
        with collected.db:
            batch_table.store_batch(collected.db, batch(examples))
        collected.count()
        before = collected.stored()
        monkeypatch.setattr(feedback_counts, "checks_digest", lambda: "other checks")
        feedback_counts.prepare(collected.db, "hold")
        assert feedback_counts.uncounted(collected.db) == 7
        with collected.db:
            assert feedback_counts.count_stale(collected.db, LINE, "hold", 3) == 3
        assert feedback_counts.uncounted(collected.db) == 4
        feedback_counts.prepare(collected.db, "hold")
        assert feedback_counts.uncounted(collected.db) == 4, "a restart goes on"
        collected.count()
        assert collected.stored() == before


def revision_of(response_id: str, answer: str) -> ExampleRevision:
    signal = Signal(
        event_id=f"e-{response_id}", kind="correction", user_id=USERS[1], value=answer, occurred_at=NOW
    )
    return ExampleRevision(
        line=LINE,
        response_id=response_id,
        revision=1,
        op="upsert",
        version=f"{LINE}@base-00000000",
        messages=(Message(role="user", content=QUESTIONS[0]),),
        choices=(Choice(index=0, text="I do not know."),),
        signals=(signal,),
        responded_at=NOW,
        revised_at=NOW,
    )


def test_erased_user_leaves_no_trace_in_the_counts() -> None:
    with line() as collected:
        with collected.db:
            batch_table.store_batch(collected.db, batch([revision_of("r1", "Ida Voss.")]))
        collected.count()
        with collected.db:
            batch_table.store_batch(collected.db, batch([], rewrite=1))
        collected.count()
        dump = "\n".join(collected.db.iterdump())
        assert not [name for name in ("r1", USERS[1], "Ida") if f"'{name}" in dump]


def test_released_row_is_new_again_when_its_run_was_erased() -> None:
    with line() as collected:
        with collected.db:
            batch_table.store_batch(collected.db, batch([revision_of("r1", ANSWERS[0])]))
            collected.db.execute(
                "INSERT INTO releases (response_id, event_id, passes) VALUES ('r1', 'e', 'x')"
            )
        collected.count()
        counts = []
        for released in (1, 0, 1):
            feedback_counts.set_limits(collected.db, Limits({"0": 1}, released))
            counts.append(feedback_counts.usable_rows(collected.db).new)
        assert counts == [0, 1, 0]


def test_heldout_labels_make_as_many_pairs_as_the_rarer_label_has() -> None:
    rows = UsableRows(heldout={("thumbs", 1): 4, ("rating", 1): 2, ("thumbs", 0): 3, ("correction", -1): 5})
    assert rows.gate_pairs["thumbs"] == 3
    assert (rows.gate_corrections, rows.gate_likes, rows.gate_items) == (5, 4 + 2, 5 + 3 + 6)
