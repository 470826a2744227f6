"""Import of Langfuse's scores and traces: the feedback service's table, users, ids, and edits."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from loopwright.imports import langfuse_scores
from loopwright.imports.langfuse import answer_of, conversation_of, open_trace_users, read_scores, read_traces
from loopwright.imports.rows import BadRow, Defaults, ParsedRow, Row, RowError
from services.feedback.core import langfuse_ingestion
from services.feedback.core import langfuse_scores as service_scores
from services.feedback.core.langfuse_edits import PREFIX, score_key
from services.feedback.core.langfuse_scores import SCORE_BODY, signals_of
from services.feedback.langfuse.score_handlers import USER_OF_TRACE
from shared.errors import Rejected

Json = dict[str, Any]
SCORE: Json = {
    "id": "s1",
    "traceId": "t1",
    "name": "user-feedback",
    "value": 1,
    "stringValue": "True",
    "dataType": "BOOLEAN",
    "source": "API",
    "timestamp": "2026-03-01T12:00:00.000Z",
    "updatedAt": "2026-03-01T12:00:00.000Z",
    "comment": None,
    "trace": {"userId": "bob", "tags": [], "environment": "default"},
}
"""As `GET /api/public/v2/scores` gives it."""
TRACE: Json = {
    "id": "t1",
    "timestamp": "2026-03-01T11:59:00.000Z",
    "name": "chat",
    "input": {"messages": [{"role": "user", "content": "Capital?"}]},
    "output": {"role": "assistant", "content": "Wellington."},
    "userId": "ann",
    "tags": [],
}


def import_both(
    scores: list[Json], traces: Sequence[Json] = (), **uses: Any
) -> tuple[list[ParsedRow], list[ParsedRow]]:
    with open_trace_users() as users:
        recorded = list(read_traces(io.BytesIO(json.dumps(list(traces)).encode()), Defaults(), users))
        given = list(read_scores(io.BytesIO(json.dumps(scores).encode()), Defaults(), users, uses))
    return recorded, given


def events_of(score: Json, *traces: Json) -> list[Json]:
    [row] = import_both([score], list(traces))[1]
    assert isinstance(row, Row), row
    return [dict(event) for event in row.events]


# --- the same as the feedback service -------------------------------------------------------------------------------


def test_tables_are_those_of_the_feedback_service() -> None:
    for name in ("DEFAULT_USES", "UP", "DOWN"):
        assert getattr(langfuse_scores, name) == getattr(service_scores, name)
    assert USER_OF_TRACE == "langfuse-trace:"


LABELS = st.sampled_from(["positive", "Thumbs Up", "down", "4", "1", "-1", "", " ", "text", "inf"])


@given(
    name=st.sampled_from(["user-feedback", "rating", "comment", "mine", "accuracy", "skip"]),
    value=st.booleans() | st.sampled_from([0, 1, -1, 3, 5, 6, 2.0, 2.5, math.inf, 10**400]) | LABELS,
    data_type=st.sampled_from([None, "NUMERIC", "BOOLEAN", "CATEGORICAL", "TEXT", "CORRECTION"]),
    comment=st.sampled_from([None, "", " ", " too long "]),
)
def test_scores_say_what_the_feedback_service_understands(
    name: str, value: Any, data_type: str | None, comment: str | None
) -> None:
    uses: dict[str, Any] = {"mine": "rating", "skip": "ignore"}
    body = {"name": name, "value": value, "comment": comment} | ({"dataType": data_type} if data_type else {})
    try:
        expected: Any = [(s.kind, s.value) for s in signals_of(SCORE_BODY.validate_python(body), uses)]
    except (Rejected, ValidationError):
        expected = "refused"
    try:
        found: Any = [(s.kind, s.value) for s in langfuse_scores.signals_of(body, uses)]
    except BadRow:
        found = "refused"
    assert found == expected


VALUES = st.recursive(
    st.none() | st.integers() | st.sampled_from(["", "hi", "assistant", "user"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "choices", "message"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(VALUES)
@example([{"role": [], "content": "hi"}])
def test_traces_hold_what_the_feedback_service_finds_in_them(value: Any) -> None:
    assert conversation_of(value) == langfuse_ingestion.messages_of(value)
    assert answer_of(value) == langfuse_ingestion.answer_of(value)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_value_of_a_category_is_its_label() -> None:
    category = SCORE | {"dataType": "CATEGORICAL", "value": 7, "stringValue": "negative"}
    assert [event["value"] for event in events_of(category)] == ["down"]


def test_score_finds_its_response_and_user() -> None:
    assert [(e["response_id"], e["user_id"]) for e in events_of(SCORE)] == [("t1", "bob")]
    del_trace = {name: value for name, value in SCORE.items() if name != "trace"}
    assert events_of(del_trace, TRACE)[0]["user_id"] == "ann"
    assert events_of(del_trace)[0]["user_id"] == f"{USER_OF_TRACE}t1"
    named = SCORE | {"metadata": {"response_id": "chatcmpl-7", "userId": "eve"}}
    assert [(e["response_id"], e["user_id"]) for e in events_of(named)] == [("chatcmpl-7", "eve")]


def test_ids_name_the_score_and_change_with_each_edit() -> None:
    edited = SCORE | {"value": 0, "updatedAt": "2026-03-02T12:00:00.000Z"}
    back = SCORE | {"updatedAt": "2026-03-03T12:00:00.000Z"}
    ids = [events_of(score)[0]["event_id"] for score in (SCORE, SCORE, edited, back)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert all(event_id.startswith(f"{PREFIX}{score_key('s1')}.") for event_id in ids)
    assert [events_of(each)[0]["occurred_at"] for each in (edited,)] == ["2026-03-02T12:00:00+00:00"]


@pytest.mark.parametrize(
    ("score", "fault"),
    [
        (SCORE | {"name": "hallucination"}, "--score"),
        (SCORE | {"traceId": None}, "names no response"),
        (SCORE | {"updatedAt": "soon"}, "updatedAt"),
        (SCORE | {"value": [1]}, "value"),
        (SCORE | {"name": 5}, "no name"),
        (SCORE | {"comment": 5}, "comment"),
    ],
)
def test_score_that_cannot_be_used_says_why(score: Json, fault: str) -> None:
    [row] = import_both([score])[1]
    assert isinstance(row, RowError) and fault in row.reason


def test_trace_becomes_a_response_under_its_id() -> None:
    [row], _ = import_both([], [TRACE])
    assert isinstance(row, Row)
    assert row.responses == [
        {
            "response_id": "t1",
            "version": "imported",
            "messages": [{"role": "user", "content": "Capital?"}],
            "choices": [{"index": 0, "text": "Wellington."}],
            "user_id": "ann",
            "created_at": "2026-03-01T11:59:00+00:00",
        }
    ]


def test_trace_without_a_conversation_or_answer_is_left_out() -> None:
    rows, _ = import_both([], [TRACE | {"output": None}, TRACE | {"input": 7}])
    assert [isinstance(row, Row) and not row.responses for row in rows] == [True, True]
