"""Records of the SDK's Kafka publisher against the records that the feedback service makes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

import loopwright.records as sdk
from loopwright.errors import InvalidRecord
from services.feedback.core.schemas import (
    FEEDBACK_BODY,
    MAX_CLOCK_LEAD,
    RESPONSE_BODY,
    parse_body,
    to_event,
    to_response,
)
from shared import events
from shared.cloudevents import cloudevent
from shared.errors import Rejected
from shared.limits import MAX_EVENT_BYTES, MAX_RESPONSE_BYTES
from shared.pseudonym import Pseudonymiser
from shared.records import Output
from shared.settings import MIN_SECRET
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS
from shared.user_ids import MAX_USER_ID
from tests.unit.test_api_bounds import JUNK, ODD_TEXTS, TIMES

KEY = "a key that is long enough"
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
FACTORY = sdk.RecordFactory(line="assistant", source="feedback", pseudonymiser=sdk.Pseudonymiser(KEY))
KINDS = ["thumbs", "rating", "correction", "comment", "preference", "retract"]
VALUES = JUNK | st.sampled_from(["up", 3, {"over": 1}, {"under": "text"}, {"beside": "x"}])
FEEDBACK_FIELDS: dict[str, Any] = {
    "response_id": "r1", "user_id": "alice", "kind": "thumbs", "value": "up", "event_id": "e1"
}  # fmt: skip


def shape(schema: Any) -> Any:
    """Return a JSON Schema without its texts."""
    if isinstance(schema, dict):
        return {
            name: shape(value)
            for name, value in schema.items()
            if name not in {"title", "description"} or not isinstance(value, str)
        }
    return [shape(item) for item in schema] if isinstance(schema, list) else schema


def of_service(fields: dict[str, Any]) -> Output | None:
    """Return the record that the feedback service makes of a body, or None if it refuses it."""
    try:
        body = parse_body(FEEDBACK_BODY, json.dumps(fields).encode())
        pseudonym = Pseudonymiser(KEY.encode()).of(body.user_id)
        event = to_event(body, event_id=str(body.event_id), line="assistant", pseudonym=pseudonym, now=NOW)
    except Rejected:
        return None
    return cloudevent(
        FEEDBACK_EVENTS,
        event.response_id,
        event,
        source="feedback",
        ce_id=f"{event.response_id}/{event.event_id}",
        at=NOW,
        traceparent=TRACE,
    )


def of_sdk(fields: dict[str, Any]) -> sdk.KafkaRecord | None:
    """Return the record that the SDK makes of the same fields, or None if it refuses them."""
    arguments = dict(fields)
    if "occurred_at" in arguments:
        try:
            arguments["occurred_at"] = datetime.fromisoformat(arguments["occurred_at"])
        except ValueError:
            return None
    try:
        return FACTORY.feedback(**arguments, traceparent=TRACE, now=NOW)
    except InvalidRecord:
        return None


def same(ours: sdk.KafkaRecord, theirs: Output) -> bool:
    """Return whether two records are equal byte for byte."""
    return (ours.topic, ours.key, ours.value, ours.headers) == (
        theirs.topic, theirs.key, theirs.value, theirs.headers,
    )  # fmt: skip


def test_sdk_and_services_define_the_same_records() -> None:
    pairs: list[tuple[TypeAdapter[Any], TypeAdapter[Any]]] = [
        (sdk.FEEDBACK, events.FEEDBACK),
        (sdk.RESPONSE, TypeAdapter(events.ChatResponse)),
    ]
    for ours, theirs in pairs:
        assert shape(ours.json_schema()) == shape(theirs.json_schema())


def test_sdk_and_services_have_the_same_limits_and_names() -> None:
    assert (sdk.MAX_RESPONSE_BYTES, sdk.MAX_EVENT_BYTES) == (MAX_RESPONSE_BYTES, MAX_EVENT_BYTES)
    assert (sdk.MAX_USER_ID, sdk.MAX_TEXT, sdk.EARLIEST, sdk.MAX_CLOCK_LEAD) == (
        MAX_USER_ID,
        events.MAX_TEXT,
        events.EARLIEST,
        MAX_CLOCK_LEAD,
    )
    assert (CHAT_RESPONSES.name, FEEDBACK_EVENTS.name) == (sdk.CHAT_RESPONSES, sdk.FEEDBACK_EVENTS)
    assert sdk.MIN_KEY_BYTES == MIN_SECRET


@given(ODD_TEXTS, st.binary(min_size=16, max_size=64))
def test_pseudonyms_equal_the_services(user_id: str, key: bytes) -> None:
    try:
        pseudonym = sdk.Pseudonymiser(key).of(user_id)
    except InvalidRecord:
        return
    assert pseudonym == Pseudonymiser(key).of(user_id)


def test_short_pseudonym_key_is_refused() -> None:
    with pytest.raises(ValueError, match="LOOPWRIGHT_PSEUDONYM_KEY"):
        sdk.Pseudonymiser("short")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"kind": "rating", "value": 4},
        {"kind": "correction", "value": "It was “Orla”.\n\x01"},
        {"kind": "comment", "value": "Say which model."},
        {"kind": "preference", "value": {"over": 1}},
        {"kind": "preference", "value": {"under": "Cold."}},
        {"kind": "retract", "value": "e0"},
        {"choice": 3, "tags": ["tone", "é"], "occurred_at": (NOW - timedelta(hours=1)).isoformat()},
        {"occurred_at": "2026-03-04T01:02:03.456789+05:30"},
    ],
    ids=str,
)
def test_feedback_record_equals_the_services_byte_for_byte(change: dict[str, Any]) -> None:
    ours, theirs = of_sdk(FEEDBACK_FIELDS | change), of_service(FEEDBACK_FIELDS | change)
    assert ours is not None
    assert theirs is not None
    assert same(ours, theirs)


@given(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(KINDS), "value": VALUES},
        optional={
            "user_id": ODD_TEXTS,
            "response_id": ODD_TEXTS,
            "event_id": ODD_TEXTS,
            "choice": st.integers(-1, 9),
            "tags": st.lists(st.text("abc é", min_size=0, max_size=70), max_size=18),
            "occurred_at": TIMES,
        },
    )
)
def test_sdk_accepts_exactly_the_feedback_that_the_service_accepts(change: dict[str, Any]) -> None:
    ours, theirs = of_sdk(FEEDBACK_FIELDS | change), of_service(FEEDBACK_FIELDS | change)
    assert (ours is None) == (theirs is None)
    assert ours is None or theirs is None or same(ours, theirs)


def test_response_record_equals_the_services_byte_for_byte() -> None:
    fields: dict[str, Any] = {
        "response_id": "r1",
        "version": "gpt-x",
        "messages": [{"role": "user", "content": "How “hot”?"}],
        "choices": [{"index": 0, "text": "Very.", "finish_reason": "stop"}],
        "metadata": {"page": "7"},
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        "latency_ms": 12.5,
    }
    body = parse_body(RESPONSE_BODY, json.dumps(fields | {"user_id": "alice"}).encode())
    pseudonym = Pseudonymiser(KEY.encode()).of("alice")
    response = to_response(body, line="assistant", pseudonym=pseudonym, now=NOW)
    theirs = cloudevent(
        CHAT_RESPONSES, "r1", response, source="feedback", ce_id="r1", at=NOW, traceparent=TRACE
    )
    assert same(FACTORY.response(**fields, user_id="alice", traceparent=TRACE, now=NOW), theirs)


def test_response_that_no_batch_can_hold_is_not_sent() -> None:
    messages = [{"role": "user", "content": "x" * 30_000}] * 13
    with pytest.raises(InvalidRecord, match=str(MAX_RESPONSE_BYTES)):
        FACTORY.response("r1", messages, [{"index": 0, "text": "y"}], version="gpt-x", now=NOW)


def test_malformed_traceparent_is_replaced() -> None:
    record = FACTORY.feedback("r1", "alice", "thumbs", "up", "e1", traceparent="x" * 900, now=NOW)
    assert len(dict(record.headers)["traceparent"]) == len(TRACE)


def test_time_without_a_zone_is_not_sent() -> None:
    with pytest.raises(InvalidRecord, match="time zone"):
        FACTORY.feedback("r1", "alice", "thumbs", "up", "e1", occurred_at=datetime(2026, 1, 1), now=NOW)  # noqa: DTZ001
