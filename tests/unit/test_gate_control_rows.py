"""What a control trains: the candidate's rows, without what the new feedback says."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.dataset.filters import GroupedRow, Row
from services.trainer.gate.control_rows import control_rows
from shared.feedback_kinds import Objective

Drawn = tuple[int, Objective, bool]


def rows_of(drawn: list[Drawn]) -> list[GroupedRow]:
    """Return rows of (question group, objective, label), each with texts of its own."""
    return [
        GroupedRow(
            Row(
                f"r{i}",
                1,
                f"e{i}",
                f"u{i % 3}",
                (("user", f"question {group}"),),
                f"original {i}" if objective != "kto" else "",
                f"answer {i}",
                i,
                objective=objective,
                label=liked if objective == "kto" else None,
                unended=i % 4 == 0,
            ),
            group,
        )
        for i, (group, objective, liked) in enumerate(drawn)
    ]


ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(("sft", "dpo", "kto")), st.booleans()), max_size=40
).map(rows_of)


@given(ROWS, st.integers(0, 9), st.data())
def test_a_control_keeps_questions_and_the_distribution_of_answers(
    rows: list[GroupedRow], seed: int, data: st.DataObject
) -> None:
    known = data.draw(st.sets(st.sampled_from([one.row.identity for one in rows]))) if rows else set()
    control = control_rows(rows, known, seed)
    assert control == control_rows(rows, known, seed)
    assert [one.row.messages for one in control] == [one.row.messages for one in rows]
    assert [one.row.identity for one in control] == [one.row.identity for one in rows]
    for before, after in zip(rows, control, strict=True):
        if before.row.identity in known:
            assert after == before
    new = [i for i, one in enumerate(rows) if one.row.identity not in known]
    for objective in ("sft", "kto"):
        of = [i for i in new if rows[i].row.objective == objective]
        assert Counter((rows[i].row.answer, rows[i].row.unended) for i in of) == Counter(
            (control[i].row.answer, control[i].row.unended) for i in of
        )
        assert Counter(rows[i].row.label for i in of) == Counter(control[i].row.label for i in of)
    preferences = [i for i in new if rows[i].row.objective == "dpo"]
    assert sum(control[i] != rows[i] for i in preferences) == len(preferences) // 2
    for i in preferences:
        texts = {rows[i].row.answer, rows[i].row.original}
        assert {control[i].row.answer, control[i].row.original} == texts


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.integers(0, 9))
def test_no_new_question_keeps_an_answer_if_groups_are_small(groups: list[int], seed: int) -> None:
    largest = max(Counter(groups).values())
    rows = rows_of([(group, "sft", True) for group in groups])
    control = control_rows(rows, set(), seed)
    answered = {one.row.answer: one.group for one in rows}
    kept = sum(answered[one.row.answer] == one.group for one in control)
    if 2 * largest <= len(groups) // 2:
        assert kept == 0


def test_a_control_of_a_run_without_new_rows_trains_the_same_rows() -> None:
    rows = rows_of([(i, "sft", True) for i in range(8)])
    assert control_rows(rows, {one.row.identity for one in rows}, 1) == rows


def test_preferences_of_a_control_say_nothing() -> None:
    rows = rows_of([(i, "dpo", True) for i in range(10)])
    control = control_rows(rows, set(), 3)
    reversed_rows = [one for one, before in zip(control, rows, strict=True) if one != before]
    assert len(reversed_rows) == 5
    by_identity = {one.row.identity: one.row for one in rows}
    for one in reversed_rows:
        before = by_identity[one.row.identity]
        assert (one.row.answer, one.row.original) == (before.original, before.answer)
        assert (one.row.unended, one.row.original_unended) == (before.original_unended, before.unended)
