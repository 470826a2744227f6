"""Whatever an HTTP API accepts is a record that the processor can use, of a user who can be erased."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.feedback.core.schemas import (
    ERASURE_BODY,
    FEEDBACK_BODY,
    RESPONSE_BODY,
    parse_body,
    to_event,
    to_response,
)
from services.inference.api.request_schemas import parse_chat_request
from shared.errors import Malformed, Oversized, Rejected
from shared.events import (
    EARLIEST,
    FEEDBACK,
    MAX_RECORD_BYTES,
    MAX_TEXT,
    ChatResponse,
    Choice,
    Feedback,
    Message,
    parse_union,
)
from shared.limits import FEEDBACK_ROOM_BYTES, MAX_EVENT_BYTES, MAX_RESPONSE_BYTES
from shared.user_ids import MAX_USER_ID, USER_ID_RULE
from tests.unit.processor_driver import START, ProcessorDriver, feedback

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
THUMBS = {"response_id": "r1", "user_id": "alice", "kind": "thumbs", "value": "up"}
RESPONSE: dict[str, Any] = {
    "response_id": "r1",
    "version": "gpt-x",
    "messages": [{"role": "user", "content": "hi"}],
    "choices": [{"index": 0, "text": "hello"}],
}
ODD_TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "\x00", "a\tb", "\x7f", "\x85", "\u2028", "é", "\U0001f600", "u/1", "u|1", "u:1"]
    ),
    st.integers(1, 600).map(lambda n: "x" * n),
    st.builds(
        lambda n, text: text * n, st.integers(1, MAX_TEXT + 1), st.sampled_from("\u4e00\x01\U0001f600")
    ),
)
TIMES = st.one_of(
    st.datetimes(timezones=st.timezones() | st.just(UTC)).map(lambda moment: moment.isoformat()),
    st.sampled_from(
        ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00", "now", "1e99"]
    ),
)
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([-1, 0, 10**30, 10**400, 1e308, float("inf"), float("nan")])
)
JUNK = ODD_TEXTS | NUMBERS | st.none() | st.booleans() | st.lists(ODD_TEXTS, max_size=3)
FEEDBACK_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "event_id": ODD_TEXTS,
        "response_id": ODD_TEXTS,
        "user_id": ODD_TEXTS,
        "kind": st.sampled_from(["thumbs", "rating", "correction", "comment", "preference", "retract"]),
        "value": JUNK
        | st.sampled_from(["up", 3, {"over": 1}, {"under": "text"}])
        | ODD_TEXTS.map(lambda text: {"over": text}),
        "choice": NUMBERS | st.integers(0, 8),
        "tags": st.lists(ODD_TEXTS | st.just("tone"), max_size=20),
        "occurred_at": TIMES,
    },
)
RESPONSE_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "response_id": ODD_TEXTS,
        "version": ODD_TEXTS,
        "user_id": ODD_TEXTS,
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "robot"]), "content": ODD_TEXTS}
            ),
            max_size=6,
        ),
        "choices": st.lists(
            st.fixed_dictionaries(
                {"index": st.integers(-1, 9), "text": ODD_TEXTS, "finish_reason": ODD_TEXTS}
            ),
            max_size=9,
        ),
        "status": st.sampled_from(["completed", "failed", "cancelled", "odd"]),
        "error": ODD_TEXTS,
        "metadata": st.dictionaries(ODD_TEXTS, ODD_TEXTS, max_size=20),
        "usage": st.fixed_dictionaries({"prompt_tokens": NUMBERS, "completion_tokens": NUMBERS}),
        "latency_ms": NUMBERS,
        "first_token_ms": NUMBERS,
        "created_at": TIMES,
    },
)


def user_id_of_chat(user_id: Any, field: str = "user") -> str | None:
    """Return the user id under which a chat with this field is recorded."""
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}], field: user_id}
    return parse_chat_request(json.dumps(body).encode()).user_id()


@given(FEEDBACK_FIELDS)
def test_accepted_feedback_is_a_valid_record_that_a_batch_can_hold(fields: dict[str, Any]) -> None:
    try:
        body = parse_body(FEEDBACK_BODY, json.dumps(THUMBS | fields).encode())
        event = to_event(body, event_id=body.event_id or "e1", line="assistant", pseudonym="u_1", now=NOW)
    except Rejected:
        return
    value = event.to_json()
    assert parse_union(FEEDBACK, value) == event
    assert len(value) <= MAX_EVENT_BYTES
    assert event.occurred_at is None or EARLIEST <= event.occurred_at <= NOW + timedelta(days=1)


@given(RESPONSE_FIELDS)
def test_accepted_response_is_a_valid_record_that_a_batch_can_hold(fields: dict[str, Any]) -> None:
    try:
        body = parse_body(RESPONSE_BODY, json.dumps(RESPONSE | fields).encode())
        response = to_response(body, line="assistant", pseudonym="u_1", now=NOW)
    except Rejected:
        return
    value = response.to_json()
    assert ChatResponse.from_json(value) == response
    assert len(value) <= MAX_RESPONSE_BYTES
    assert EARLIEST <= response.created_at <= NOW + timedelta(days=1)


def largest_response() -> ChatResponse:
    """Return a response of exactly `MAX_RESPONSE_BYTES`."""
    texts = [MAX_TEXT] * (MAX_RESPONSE_BYTES // (MAX_TEXT + 100))

    def made(lengths: list[int]) -> ChatResponse:
        return ChatResponse(
            line="assistant",
            response_id="r" * 128,
            version="v" * 256,
            user_id="u" * 128,
            messages=tuple(Message(role="user", content="x" * length) for length in lengths),
            choices=(Choice(index=0, text="y", finish_reason="stop"),),
            created_at=START,
        )

    missing = MAX_RESPONSE_BYTES - len(made([*texts, 1]).to_json())
    response = made([*texts, 1 + missing])
    assert len(response.to_json()) == MAX_RESPONSE_BYTES
    return response


@pytest.mark.parametrize("character", ["x", "\u4e00", "\U0001f600", '"', "\n"])
def test_largest_response_leaves_room_for_the_largest_correction(character: str) -> None:
    driver = ProcessorDriver()
    driver.append(largest_response())
    event = feedback(
        "correction",
        character * MAX_TEXT,
        "e" * 128,
        "u" * 128,
        response_id="r" * 128,
        tags=["\U0001f600" * 64] * 16,
    )
    driver.append(event, at_s=1)
    driver.tick(at_s=60)
    assert driver.outcomes == {"e" * 128: "batched"}


def response_of_size(size: int) -> ChatResponse:
    """Return the record that the API makes of a body whose record has this size."""

    def made(last: int) -> ChatResponse:
        texts = [MAX_TEXT] * (MAX_RESPONSE_BYTES // (MAX_TEXT + 100))
        messages = [{"role": "user", "content": "x" * length} for length in (*texts, last)]
        body = parse_body(RESPONSE_BODY, json.dumps(RESPONSE | {"messages": messages}).encode())
        return to_response(body, line="assistant", pseudonym=None, now=NOW)

    return made(1 + size - len(made(1).to_json()))


def test_largest_response_leaves_room_for_the_largest_event() -> None:
    fields: dict[str, Any] = {
        "response_id": "r" * 128,
        "event_id": "e" * 128,
        "user_id": "alice",
        "kind": "correction",
        "tags": ["\U0001f600" * 64] * 16,
    }

    def made(filler: int) -> Feedback:
        body = FEEDBACK_BODY.validate_python(fields | {"value": "\x01" * 21_000 + "x" * filler})
        return to_event(body, event_id=fields["event_id"], line="assistant", pseudonym="u_1", now=NOW)

    largest = made(1 + MAX_EVENT_BYTES - len(made(1).to_json()))
    assert len(largest.to_json()) == MAX_EVENT_BYTES
    with pytest.raises(Oversized, match=str(MAX_EVENT_BYTES)):
        made(2 + MAX_EVENT_BYTES - len(made(1).to_json()))
    driver = ProcessorDriver()
    driver.append(largest_response())
    driver.append(largest, at_s=1)
    driver.tick(at_s=60)
    assert driver.outcomes == {"e" * 128: "batched"}


def test_response_one_byte_over_the_limit_is_oversized() -> None:
    assert len(response_of_size(MAX_RESPONSE_BYTES).to_json()) == MAX_RESPONSE_BYTES
    with pytest.raises(Oversized, match=str(MAX_RESPONSE_BYTES)):
        response_of_size(MAX_RESPONSE_BYTES + 1)


@given(ODD_TEXTS, st.sampled_from(["user", "safety_identifier"]))
def test_every_user_that_can_chat_can_give_feedback_and_be_erased(user_id: str, field: str) -> None:
    try:
        recorded = user_id_of_chat(user_id, field)
    except Malformed:
        with pytest.raises(Malformed):
            parse_body(FEEDBACK_BODY, json.dumps(THUMBS | {"user_id": user_id}).encode())
        return
    if recorded is None:
        assert user_id == "", "an id was ignored"
        return
    assert recorded == user_id
    bodies = [(FEEDBACK_BODY, THUMBS), (RESPONSE_BODY, RESPONSE), (ERASURE_BODY, {})]
    for adapter, body in bodies:
        raw = json.dumps(body | {"user_id": user_id}).encode()
        assert parse_body(adapter, raw).user_id == user_id


@pytest.mark.parametrize("user_id", ["x" * (MAX_USER_ID + 1), "ann\tb", "\x00", "a\x85b"])
def test_every_api_names_the_same_rule_for_user_ids(user_id: str) -> None:
    with pytest.raises(Malformed, match=USER_ID_RULE):
        user_id_of_chat(user_id)
    for adapter in (FEEDBACK_BODY, ERASURE_BODY):
        with pytest.raises(Malformed, match=USER_ID_RULE):
            parse_body(adapter, json.dumps(THUMBS | {"user_id": user_id}).encode())


def test_user_takes_precedence_over_safety_identifier() -> None:
    body = {
        "model": "a",
        "messages": [{"role": "user", "content": "hi"}],
        "user": "ann",
        "safety_identifier": "x",
    }
    assert parse_chat_request(json.dumps(body).encode()).user_id() == "ann"
    assert parse_chat_request(json.dumps(body | {"user": ""}).encode()).user_id() == "x"


def test_no_record_that_an_api_makes_exceeds_the_log() -> None:
    assert MAX_RESPONSE_BYTES + FEEDBACK_ROOM_BYTES < MAX_RECORD_BYTES
