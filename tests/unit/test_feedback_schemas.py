"""Request bodies become valid records of the log, or are rejected with a reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from services.feedback.core.schemas import (
    FEEDBACK_BODY,
    RESPONSE_BODY,
    parse_body,
    resolve_id,
    to_event,
    to_response,
)
from shared.errors import Malformed, Rejected
from shared.events import EARLIEST, MAX_MESSAGES, ChatResponse, Feedback, Over, Preference, Thumbs, Under

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
THUMBS = {"response_id": "chatcmpl-1", "user_id": "alice", "kind": "thumbs", "value": "up"}


def event(fields: dict[str, Any]) -> Feedback:
    body = parse_body(FEEDBACK_BODY, json.dumps(fields).encode())
    return to_event(body, event_id="e1", line="assistant", pseudonym="u_1", now=NOW)


def test_user_id_never_reaches_the_record() -> None:
    record = event(THUMBS)
    assert isinstance(record, Thumbs)
    assert (record.user_id, record.line, record.event_id, record.received_at) == (
        "u_1",
        "assistant",
        "e1",
        NOW,
    )
    assert b"alice" not in record.to_json()


def test_all_feedback_fields_reach_the_record() -> None:
    at = NOW - timedelta(hours=1)
    record = event(THUMBS | {"line": "other", "choice": 2, "tags": ["tone"], "occurred_at": at.isoformat()})
    assert (record.line, record.choice, record.tags, record.occurred_at) == ("other", 2, ("tone",), at)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("thumbs", "down"),
        ("rating", 5),
        ("correction", "100 degrees.\nNot 90."),
        ("comment", "Say which model."),
        ("retract", "e0"),
    ],
)
def test_each_kind_accepts_its_value(kind: str, value: Any) -> None:
    assert event(THUMBS | {"kind": kind, "value": value}).value == value


def test_preference_names_a_text_or_choice_on_either_side() -> None:
    over = event(THUMBS | {"kind": "preference", "value": {"over": "It is cold."}})
    under = event(THUMBS | {"kind": "preference", "value": {"under": 1}})
    assert isinstance(over, Preference)
    assert over.value == Over(over="It is cold.")
    assert under.value == Under(under=1)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("thumbs", "sideways"),
        ("thumbs", True),
        ("rating", 0),
        ("rating", 6),
        ("rating", "5"),
        ("rating", True),
        ("rating", 4.5),
        ("rating", float("nan")),
        ("rating", 10**400),
        ("correction", ""),
        ("correction", "x" * 32_769),
        ("correction", None),
        ("correction", ["a"]),
        ("preference", {"over": 1, "under": 2}),
        ("preference", {"over": 99}),
        ("preference", {"beside": "x"}),
        ("preference", "up"),
        ("retract", "no spaces please"),
        ("shout", "up"),
    ],
)
def test_value_of_another_kind_is_malformed(kind: str, value: Any) -> None:
    with pytest.raises(Malformed):
        event(THUMBS | {"kind": kind, "value": value})


def test_number_of_ten_thousand_digits_is_malformed() -> None:
    raw = json.dumps(THUMBS | {"value": 0}).replace('"value": 0', '"value": ' + "9" * 10_000)
    with pytest.raises(Malformed):
        to_event(parse_body(FEEDBACK_BODY, raw.encode()), event_id="e", line="l", pseudonym="u", now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"response_id": "a\nb"},
        {"response_id": "a b"},
        {"response_id": ""},
        {"event_id": "a\x00"},
        {"event_id": "x" * 129},
        {"user_id": "al\x1bice"},
        {"user_id": "al\x85ice"},
        {"user_id": ""},
        {"user_id": 7},
        {"user_id": "x" * 257},
        {"tags": ["a\tb"]},
        {"tags": ["t"] * 17},
        {"tags": "tone"},
        {"line": "UPPER"},
        {"choice": -1},
        {"choice": 8},
        {"choice": "0"},
        {"occurred_at": "2026-03-04T05:06:07"},
        {"occurred_at": "yesterday"},
        {"occured_at": "2026-03-04T05:06:07Z"},
    ],
    ids=json.dumps,
)
def test_field_out_of_bounds_or_misspelled_is_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        event(THUMBS | change)


def test_user_ids_may_use_any_script() -> None:
    assert event(THUMBS | {"user_id": "Zoë 张伟 +49 (0)30"}).user_id == "u_1"


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b'"x"', b"null", b'{"value":' * 5_000], ids=repr)
def test_body_that_is_no_json_object_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_body(FEEDBACK_BODY, raw)


def test_deeply_nested_body_is_malformed() -> None:
    deep = (
        b'{"response_id": "r", "user_id": "u", "kind": "comment", "value": '
        + b"[" * 5_000
        + b"]" * 5_000
        + b"}"
    )
    with pytest.raises(Malformed):
        parse_body(FEEDBACK_BODY, deep)


def test_fault_names_the_field_and_not_the_input() -> None:
    with pytest.raises(Malformed) as raised:
        event(THUMBS | {"value": "my password is hunter2"})
    assert str(raised.value).startswith("value: ")
    assert "hunter2" not in str(raised.value)


def test_time_more_than_a_day_ahead_is_rejected() -> None:
    assert event(THUMBS | {"occurred_at": (NOW + timedelta(hours=23)).isoformat()}).occurred_at
    with pytest.raises(Rejected, match="future"):
        event(THUMBS | {"occurred_at": (NOW + timedelta(hours=25)).isoformat()})


OUT_OF_RANGE = [
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00+23:59",
    "0001-01-01T00:00:00Z",
    "1969-12-31T23:59:59.999Z",
    "1999-12-31T23:59:59.999Z",
    "2000-01-01T13:59:59+14:00",
    "1999-12-31T09:59:59-14:00",
    "9999-12-31T23:59:59-14:00",
    "9999-12-31T23:59:59Z",
]


@pytest.mark.parametrize("at", OUT_OF_RANGE)
def test_time_out_of_range_is_rejected_with_the_accepted_range(at: str) -> None:
    with pytest.raises(Rejected, match=r"^occurred_at is .* from 2000-01-01T00:00:00Z until one day"):
        event(THUMBS | {"occurred_at": at})
    with pytest.raises(Rejected, match=r"^created_at is .* or leave the field out$"):
        response(RESPONSE | {"created_at": at})


@pytest.mark.parametrize("hours", [-14, 0, 14])
def test_earliest_time_is_accepted_at_any_offset(hours: int) -> None:
    at = EARLIEST.astimezone(timezone(timedelta(hours=hours))).isoformat()
    assert event(THUMBS | {"occurred_at": at}).occurred_at == EARLIEST
    assert response(RESPONSE | {"created_at": at}).created_at == EARLIEST


def test_event_id_comes_from_body_or_header() -> None:
    body_with_id = parse_body(FEEDBACK_BODY, json.dumps(THUMBS | {"event_id": "e7"}).encode())
    body_without_id = parse_body(FEEDBACK_BODY, json.dumps(THUMBS).encode())
    assert resolve_id(body_with_id.event_id, None) == "e7"
    assert resolve_id(body_with_id.event_id, "e7") == "e7"
    assert resolve_id(body_without_id.event_id, "e8") == "e8"
    assert resolve_id(body_without_id.event_id, None) is None
    with pytest.raises(Rejected, match="differ"):
        resolve_id(body_with_id.event_id, "e8")
    with pytest.raises(Malformed):
        resolve_id(body_without_id.event_id, "not an id")


RESPONSE = {
    "response_id": "r1",
    "version": "gpt-x",
    "messages": [{"role": "user", "content": "How hot?"}],
    "choices": [{"index": 0, "text": "Very."}],
}


def response(fields: dict[str, Any], pseudonym: str | None = None) -> ChatResponse:
    return to_response(
        parse_body(RESPONSE_BODY, json.dumps(fields).encode()), line="assistant", pseudonym=pseudonym, now=NOW
    )


def test_response_of_an_own_model_becomes_a_record() -> None:
    record = response(RESPONSE | {"user_id": "alice", "usage": {"prompt_tokens": 3}, "latency_ms": 12}, "u_1")
    assert (record.response_id, record.version, record.line, record.user_id) == (
        "r1",
        "gpt-x",
        "assistant",
        "u_1",
    )
    assert (record.text_of(0), record.usage.prompt_tokens, record.latency_ms, record.created_at) == (
        "Very.",
        3,
        12,
        NOW,
    )
    assert response(RESPONSE).user_id is None


def test_conversation_is_accepted_as_openais_clients_hold_it() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": "hot?"}]},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call], "audio": None},
        {"role": "tool", "content": "90", "tool_call_id": "call_1"},
        {"role": "user", "content": "So?", "name": "ann"},
    ]
    choice = {"index": 0, "text": "", "finish_reason": "tool_calls", "tool_calls": [call]}
    record = response(RESPONSE | {"messages": messages, "choices": [choice]})
    assert [message.model_dump(exclude_none=True) for message in record.messages] == [
        {"role": "user", "content": "How hot?"},
        {"role": "assistant", "content": "", "tool_calls": (call,)},
        {"role": "tool", "content": "90", "tool_call_id": "call_1"},
        {"role": "user", "content": "So?", "name": "ann"},
    ]
    assert record.choices[0].model_dump(exclude_none=True) == choice | {"tool_calls": (call,)}


def test_fault_in_a_message_names_its_path() -> None:
    image = [{"type": "image_url", "image_url": {"url": "https://example.org"}}]
    for content, path in (
        (image, "messages.0.content.0: "),
        (5, "messages.0.content: "),
        (None, "messages.0: "),
    ):
        with pytest.raises(Malformed, match=f"^{path}") as malformed:
            response(RESPONSE | {"messages": [{"role": "user", "content": content}]})
        assert "example.org" not in str(malformed.value)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1)},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"choices": []},
        {"choices": [{"index": 8, "text": "x"}]},
        {"status": "fine"},
        {"metadata": {"a": 1}},
        {"latency_ms": -1},
        {"version": ""},
        {"surprise": 1},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_response_out_of_bounds_is_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        response(RESPONSE | change)
