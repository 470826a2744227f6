"""Langfuse scores: what each means as feedback, and which events edits and deletions become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.feedback.core.langfuse_edits import (
    Add,
    ScoreEvent,
    decode,
    encode,
    plan,
    present,
    score_event_of,
    value_digest,
)
from services.feedback.core.langfuse_ingestion import Envelope, answer_of, messages_of, responses_of
from services.feedback.core.langfuse_scores import SCORE_BODY, Signal, response_id_of, signals_of, user_of
from shared.errors import Malformed, Rejected
from shared.records import Record

UP, DOWN = Signal("thumbs", "up"), Signal("thumbs", "down")


def signals(**fields: Any) -> tuple[Signal, ...]:
    return signals_of(SCORE_BODY.validate_python({"name": "user-feedback", **fields}), {})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"value": 1, "dataType": "BOOLEAN"}, (UP,)),
        ({"value": 0, "dataType": "BOOLEAN"}, (DOWN,)),
        ({"value": True}, (UP,)),
        ({"value": 1.0, "dataType": "NUMERIC"}, (UP,)),
        ({"value": -1}, (DOWN,)),
        ({"value": "thumbs_up", "dataType": "CATEGORICAL"}, (UP,)),
        ({"value": "Negative"}, (DOWN,)),
        ({"value": 0, "comment": "Too long. "}, (DOWN, Signal("comment", "Too long."))),
        ({"value": 0, "comment": "  "}, (DOWN,)),
        ({"value": "Be brief.", "dataType": "TEXT"}, (Signal("comment", "Be brief."),)),
        ({"name": "user-rating", "value": 4}, (Signal("rating", 4),)),
        ({"name": "stars", "value": "5", "dataType": "CATEGORICAL"}, (Signal("rating", 5),)),
        ({"name": "comment", "value": "a", "comment": "b"}, (Signal("comment", "a\nb"),)),
        ({"name": "output", "value": "Oslo.", "dataType": "CORRECTION"}, (Signal("correction", "Oslo."),)),
    ],
)
def test_score_means_what_the_table_says(fields: dict[str, Any], expected: tuple[Signal, ...]) -> None:
    assert signals(**fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"value": 0.5},
        {"value": 2, "dataType": "BOOLEAN"},
        {"value": "1", "dataType": "NUMERIC"},
        {"value": "perhaps"},
        {"value": float("nan")},
        {"value": 10**400},
        {"value": "", "dataType": "TEXT"},
        {"value": 1, "dataType": "CORRECTION"},
        {"name": "user-rating", "value": 6},
        {"name": "user-rating", "value": 4.5},
        {"name": "hallucination", "value": 0},
    ],
)
def test_score_that_is_no_feedback_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Rejected):
        signals(**fields)


def test_setting_says_what_a_name_means() -> None:
    score = SCORE_BODY.validate_python({"name": "quality", "value": 2})
    assert signals_of(score, {"quality": "rating"}) == (Signal("rating", 2),)
    assert signals_of(score, {"quality": "ignore"}) == ()


@given(
    value=st.one_of(st.booleans(), st.integers(), st.floats(), st.text()),
    kind=st.sampled_from([None, "NUMERIC", "BOOLEAN", "CATEGORICAL", "TEXT", "CORRECTION"]),
    name=st.sampled_from(["user-feedback", "user-rating", "comment", "accuracy"]),
    comment=st.one_of(st.none(), st.text()),
)
def test_any_score_is_signals_or_refused(
    value: Any, kind: str | None, name: str, comment: str | None
) -> None:
    fields = {"name": name, "value": value, "comment": comment, "dataType": kind}
    try:
        found = signals(**fields)
    except Rejected:
        return
    assert found
    assert len({signal.kind for signal in found}) == len(found), "one signal per kind"


def test_response_and_user_come_from_metadata_first() -> None:
    fields = {"name": "thumbs", "value": 1, "traceId": "t1"}
    named = SCORE_BODY.validate_python(fields | {"metadata": {"response_id": "r1", "userId": "ann"}})
    assert (response_id_of(named), user_of(named)) == ("r1", "ann")
    plain = SCORE_BODY.validate_python(fields | {"metadata": "text"})
    assert (response_id_of(plain), user_of(plain)) == ("t1", None)
    with pytest.raises(Malformed, match="traceId"):
        response_id_of(SCORE_BODY.validate_python({"name": "thumbs", "value": 1, "sessionId": "s"}))


SIGNALS = st.lists(
    st.one_of(
        st.builds(Signal, st.just("thumbs"), st.sampled_from(["up", "down"])),
        st.builds(Signal, st.just("comment"), st.sampled_from(["a", "b"])),
    ),
    unique_by=lambda signal: signal.kind,
    max_size=2,
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["r1", "r2"]), st.sampled_from(["u1", "u2"]), SIGNALS), max_size=8
)


def apply(events: list[ScoreEvent], response_id: str, user_id: str, wanted: Sequence[Signal]) -> None:
    for step in plan("s1", events, response_id, user_id, wanted):
        if isinstance(step, Add):
            events.append(
                ScoreEvent(
                    "assistant",
                    response_id,
                    user_id,
                    step.event_id,
                    step.signal.kind,
                    value_digest(step.signal.value),
                )
            )
        else:
            held = step.event
            events.append(
                ScoreEvent(held.line, held.response_id, held.user_id, step.event_id, "retract", held.event_id)
            )


@given(changes=CHANGES)
def test_log_holds_what_the_score_said_last(changes: list[tuple[str, str, list[Signal]]]) -> None:
    events: list[ScoreEvent] = []
    for response_id, user_id, wanted in changes:
        apply(events, response_id, user_id, wanted)
        found = {slot: event.value for slot, event in present(events).items()}
        assert found == {(response_id, user_id, signal.kind): value_digest(signal.value) for signal in wanted}
        assert plan("s1", events, response_id, user_id, wanted) == [], "a repetition adds nothing"
    ids = [event.event_id for event in events]
    assert len(set(ids)) == len(ids), "an id that came back would be a duplicate without effect"


def test_request_repeated_before_the_index_has_it_repeats_ids() -> None:
    first, again = (plan("s1", [], "r1", "u1", [UP]) for _ in range(2))
    assert first == again


def test_feedback_after_an_erasure_is_sent_again() -> None:
    events: list[ScoreEvent] = []
    apply(events, "r1", "u1", [UP])
    [step] = plan("s1", events, "r1", "u1", [UP], erased=True)
    assert step.event_id != events[0].event_id


def arrival(value: bytes) -> Record:
    return Record("feedback.events", 0, 0, 0, b"r1", value)


@given(raw=st.binary(max_size=64))
def test_other_records_are_no_score_events(raw: bytes) -> None:
    assert score_event_of(arrival(raw)) is None
    assert score_event_of(arrival(b'{"event_id": "langfuse.' + raw)) is None


def test_index_keeps_no_text_of_users() -> None:
    event = ScoreEvent("assistant", "r1", "u1", "langfuse.k.1", "comment", value_digest("secret"))
    assert b"secret" not in encode(event)
    assert decode(encode(event)) == event


CHAT = [{"role": "user", "content": "Hi"}]


def envelope(kind: str, **body: Any) -> Envelope:
    return Envelope(id=f"{kind}-1", type=kind, body=body)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Hi", CHAT),
        (CHAT, CHAT),
        ({"messages": CHAT, "model": "m"}, CHAT),
        ("", []),
        ([], []),
        ({"question": "Hi"}, []),
        ([{"role": "user", "content": [{"type": "image_url"}]}], []),
        ([{"role": "robot", "content": "Hi"}], []),
        (7, []),
    ],
)
def test_conversation_is_found_in_an_input(value: Any, expected: list[dict[str, str]]) -> None:
    assert messages_of(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Hello", "Hello"),
        ({"role": "assistant", "content": "Hello"}, "Hello"),
        ([{"role": "assistant", "content": "Hello"}], "Hello"),
        ({"choices": [{"message": {"role": "assistant", "content": "Hello"}}]}, "Hello"),
        ({"role": "user", "content": "Hello"}, None),
        ({"role": "assistant", "content": None, "tool_calls": []}, None),
        ({"choices": []}, None),
        ("", None),
        (None, None),
    ],
)
def test_answer_is_found_in_an_output(value: Any, expected: str | None) -> None:
    assert answer_of(value) == expected


def test_trace_comes_before_its_generations() -> None:
    events = [
        envelope("generation-create", traceId="t1", model="m", input=CHAT, output="from the generation"),
        envelope("trace-create", id="t1", userId="ann", input="Hi", output="from the trace"),
        envelope("generation-create", traceId="t2", input=CHAT, output="only a generation"),
        envelope("generation-update", traceId="t3", output="no conversation"),
        envelope("span-create", traceId="t4", input="Hi", output="no chat"),
    ]
    bodies = {response.body["response_id"]: response.body for response in responses_of(events)}
    assert bodies.keys() == {"t1", "t2"}
    assert bodies["t1"]["choices"] == [{"index": 0, "text": "from the trace"}]
    assert (bodies["t1"]["version"], bodies["t1"]["user_id"]) == ("m", "ann")
    assert bodies["t2"]["version"] == "unknown"
