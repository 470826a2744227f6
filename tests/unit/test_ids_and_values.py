"""One contract for ids, numbers, times and texts: what one API accepts, all accept, and mean the same by it.

`docs/decisions/ids-and-values.md` states it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError

from loopwright import records as sdk
from loopwright.errors import InvalidRecord
from services.console.core.command_requests import parse_command_request
from services.feedback.core.schemas import (
    ERASURE_BODY,
    FEEDBACK_BODY,
    RESPONSE_BODY,
    check_id,
    parse_body,
    to_event,
    to_response,
)
from services.inference.api.request_schemas import parse_chat_request
from shared.errors import Malformed, Rejected
from shared.events import ChatResponse, Feedback, Id
from shared.pseudonym import Pseudonymiser
from shared.user_ids import NUMBER_AS_ID

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
KEY = b"a key that is long enough"
THUMBS: dict[str, Any] = {"response_id": "r1", "user_id": "alice", "kind": "thumbs", "value": "up"}
RESPONSE: dict[str, Any] = {
    "response_id": "r1",
    "version": "gpt-x",
    "messages": [{"role": "user", "content": "hi"}],
    "choices": [{"index": 0, "text": "hello"}],
}
CHAT: dict[str, Any] = {"model": "assistant", "messages": [{"role": "user", "content": "hi"}]}
ID: TypeAdapter[str] = TypeAdapter(Id)
SDK_ID: TypeAdapter[str] = TypeAdapter(sdk.Id)
ID_SCHEMA = Draft202012Validator(ID.json_schema())
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=12),
    st.text(".", max_size=4),
    st.text("./%:~ a\u0301\ud800\x00", max_size=6),
    st.integers(120, 300).map(lambda length: "x" * length),
)


def raw(body: Any) -> bytes:
    """Return a body as clients send it. A lone surrogate can only be sent escaped."""
    return json.dumps(body).encode()


def event(fields: dict[str, Any]) -> Feedback:
    body = parse_body(FEEDBACK_BODY, raw(THUMBS | fields))
    return to_event(body, event_id=body.event_id or "e1", line="assistant", pseudonym="u_1", now=NOW)


def response(fields: dict[str, Any]) -> ChatResponse:
    body = parse_body(RESPONSE_BODY, raw(RESPONSE | fields))
    return to_response(body, line="assistant", pseudonym=None, now=NOW)


def accepts(parse: Callable[[], object]) -> bool:
    try:
        parse()
    except (Rejected, ValidationError, InvalidRecord):
        return False
    return True


# --- ids ----------------------------------------------------------------------------------------------------------


@given(TEXTS)
def test_all_apis_the_sdk_and_the_schemas_accept_the_same_ids(text: str) -> None:
    verdicts = {
        "response_id": accepts(lambda: event({"response_id": text})),
        "event_id": accepts(lambda: event({"event_id": text})),
        "recorded response": accepts(lambda: response({"response_id": text})),
        "request_id": accepts(
            lambda: parse_body(ERASURE_BODY, raw({"user_id": "alice", "request_id": text}))
        ),
        "path and header": accepts(lambda: check_id(text, "id")),
        "command_id": accepts(lambda: parse_command_request(raw({"kind": "pause", "command_id": text}))),
        "record": accepts(lambda: ID.validate_python(text)),
        "sdk": accepts(lambda: SDK_ID.validate_python(text)),
        "published schema": ID_SCHEMA.is_valid(text),
    }
    assert len(set(verdicts.values())) == 1, verdicts


@pytest.mark.parametrize("text", [".", "..", "", "a b", "é", "a\x00", "x" * 129])
def test_id_that_a_url_cannot_carry_is_refused(text: str) -> None:
    assert not accepts(lambda: event({"event_id": text}))


@pytest.mark.parametrize("text", ["...", ".a", "a.", "a/b", "%2F", "a:b", "~", "x" * 128])
def test_id_that_a_url_can_carry_is_accepted(text: str) -> None:
    assert event({"event_id": text}).event_id == text


# --- users --------------------------------------------------------------------------------------------------------


def recorded_as(user_id: str) -> dict[str, str | None]:
    """Return, by way in, the pseudonym under which a user is recorded; None if the way refuses the id."""
    services, apps = Pseudonymiser(KEY), sdk.Pseudonymiser(KEY)

    def by(parse: Callable[[], str]) -> str | None:
        try:
            return parse()
        except (Rejected, InvalidRecord):
            return None

    def chat(field: str) -> str:
        return services.of(str(parse_chat_request(raw(CHAT | {field: user_id})).user_id()))

    return {
        "user": by(lambda: chat("user")),
        "safety_identifier": by(lambda: chat("safety_identifier")),
        "feedback": by(
            lambda: services.of(parse_body(FEEDBACK_BODY, raw(THUMBS | {"user_id": user_id})).user_id)
        ),
        "responses": by(
            lambda: services.of(str(parse_body(RESPONSE_BODY, raw(RESPONSE | {"user_id": user_id})).user_id))
        ),
        "sdk to Kafka": by(lambda: apps.of(user_id)),
        "erasure": by(lambda: parse_body(ERASURE_BODY, raw({"user_id": user_id})).subject_of(services.of)),
    }


@given(TEXTS.filter(bool))
def test_whoever_can_be_recorded_can_be_erased(user_id: str) -> None:
    ways = recorded_as(user_id)
    assert len(set(ways.values())) == 1, ways


@given(st.text("aeE\u0301\u0308\u00e9 \uac00\u1100\u1161\ufb01", min_size=1, max_size=6))
def test_erasure_finds_a_user_in_any_unicode_form(user_id: str) -> None:
    forms = {recorded_as(unicodedata.normalize(form, user_id))["feedback"] for form in ("NFC", "NFD")}
    assert forms == {recorded_as(user_id)["erasure"]}


@given(TEXTS)
def test_every_user_id_on_a_topic_can_be_erased_as_a_subject(text: str) -> None:
    on_topic = accepts(lambda: ID.validate_python(text))
    assert accepts(lambda: parse_body(ERASURE_BODY, raw({"subject": text}))) == on_topic


@pytest.mark.parametrize("body", [{}, {"user_id": "a", "subject": "u_1"}, {"user_id": None}])
def test_erasure_names_exactly_one_user(body: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match="either `user_id` or `subject`"):
        parse_body(ERASURE_BODY, raw(body))


@pytest.mark.parametrize("number", [17, 17.0, 2**53 + 1])
def test_number_as_user_id_is_refused_everywhere_with_the_reason(number: float) -> None:
    for parse in (
        lambda: parse_body(FEEDBACK_BODY, raw(THUMBS | {"user_id": number})),
        lambda: parse_body(RESPONSE_BODY, raw(RESPONSE | {"user_id": number})),
        lambda: parse_body(ERASURE_BODY, raw({"user_id": number})),
        lambda: parse_chat_request(raw(CHAT | {"user": number})),
        lambda: parse_chat_request(raw(CHAT | {"safety_identifier": number})),
    ):
        with pytest.raises(Malformed, match=NUMBER_AS_ID):
            parse()


def test_empty_user_means_no_user_where_none_is_needed() -> None:
    assert parse_body(RESPONSE_BODY, raw(RESPONSE | {"user_id": ""})).user_id is None
    assert parse_chat_request(raw(CHAT | {"user": "", "safety_identifier": "x"})).user_id() == "x"


# --- numbers, nulls, times, texts -----------------------------------------------------------------------------------


def test_whole_number_with_a_fraction_is_a_whole_number() -> None:
    assert event({"kind": "rating", "value": 5.0}).value == 5
    assert event({"choice": 2.0}).choice == 2
    assert event({"kind": "preference", "value": {"over": 1.0}}).value.over == 1  # type: ignore[union-attr]
    usage = response({"usage": {"prompt_tokens": 3.0, "completion_tokens": 1}}).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 1)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_nan_is_refused_with_a_readable_reason(number: str) -> None:
    for adapter, body in ((FEEDBACK_BODY, THUMBS), (RESPONSE_BODY, RESPONSE)):
        text = json.dumps(body)[:-1] + f', "occurred_at": {number}}}'
        with pytest.raises(Malformed, match="NaN or Infinity, which are not JSON: send null"):
            parse_body(adapter, text.encode())
    with pytest.raises(Malformed, match="NaN or Infinity"):
        parse_chat_request((json.dumps(CHAT)[:-1] + f', "temperature": {number}}}').encode())


def test_nan_within_a_text_is_a_text() -> None:
    assert event({"kind": "comment", "value": 'Say "NaN", not Infinity.'}).value == 'Say "NaN", not Infinity.'


FEEDBACK_OPTIONAL = ("event_id", "line", "choice", "tags", "occurred_at")
RESPONSE_OPTIONAL = (
    "line", "status", "error", "user_id", "metadata", "usage", "latency_ms", "first_token_ms", "created_at"
)  # fmt: skip


@given(st.sets(st.sampled_from(FEEDBACK_OPTIONAL)), st.sets(st.sampled_from(RESPONSE_OPTIONAL)))
def test_null_is_the_same_as_no_field(of_feedback: set[str], of_response: set[str]) -> None:
    assert event(dict.fromkeys(of_feedback)) == event({})
    assert response(dict.fromkeys(of_response)) == response({})


@pytest.mark.parametrize(
    "text",
    [
        "2026-03-04T05:06:07Z",
        "2026-03-04t05:06:07z",
        "2026-03-04 05:06:07Z",
        "2026-03-04T05:06:07+0000",
        "2026-03-04T05:06:07-00:00",
        "2026-03-04T06:06:07+01:00",
        "2026-03-04T05:06:07.000000000Z",
        "2026-03-04T05:06:07,000Z",
    ],
)
def test_variants_of_rfc_3339_are_the_same_time(text: str) -> None:
    assert event({"occurred_at": text}).occurred_at == NOW
    assert response({"created_at": text}).created_at == NOW


@pytest.mark.parametrize(
    "time", [1772600000, 1772600000.5, "1772600000", "2026-03-04T05:06:07", "4.3.2026", True]
)
def test_time_that_is_not_clear_is_refused_with_an_example(time: Any) -> None:
    with pytest.raises(Malformed, match=r"occurred_at: .*2026-03-04T05:06:07Z|occurred_at: .*timezone"):
        event({"occurred_at": time})


def test_tags_are_a_list_or_a_map() -> None:
    assert event({"tags": ["tone", "long"]}).tags == ("tone", "long")
    assert event({"tags": {"screen": "search", "a": "b"}}).tags == ("a=b", "screen=search")
    assert (
        event({"tags": {"a": "b", "c": "d"}}).content_digest()
        == event({"tags": {"c": "d", "a": "b"}}).content_digest()
    )
    for tags in ({"a=b": "c"}, {"": "x"}, {"a": 1}, {"a": "x" * 64}, dict.fromkeys(map(str, range(17)), "")):
        with pytest.raises(Malformed):
            event({"tags": tags})


# --- what could never be used -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "preference", "value": {"over": 0}},
        {"kind": "preference", "value": {"under": 2}, "choice": 2},
        {"kind": "preference", "value": {"over": " \n"}},
        {"kind": "correction", "value": "  "},
        {"kind": "comment", "value": "\u3000\t"},
        {"kind": "retract", "value": "e9", "event_id": "e9"},
    ],
    ids=json.dumps,
)
def test_feedback_that_nothing_could_use_is_refused_with_the_reason(fields: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match=r"^value: .*: (name|send)"):
        event(fields)


def test_response_whose_choices_are_ambiguous_or_missing_is_refused() -> None:
    with pytest.raises(Rejected, match="same index"):
        response({"choices": [{"index": 0, "text": "a"}, {"index": 0, "text": "b"}]})
    with pytest.raises(Rejected, match="at least one choice"):
        response({"choices": []})
    assert response({"choices": None, "status": "failed", "error": "no answer"}).choices == ()


def test_choices_are_accepted_as_openai_clients_hold_them() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    held = [
        {
            "index": 1,
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [call],
                "refusal": None,
                "audio": None,
            },
            "finish_reason": "tool_calls",
            "logprobs": None,
        },
        {"index": 0, "message": {"role": "assistant", "content": "hi", "annotations": []}},
    ]
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "prompt_tokens_details": {"x": 1}}
    record = response({"choices": held, "usage": usage})
    assert record.text_of(0) == "hi"
    assert record.choices[0].model_dump(exclude_none=True) == {
        "index": 1,
        "text": "",
        "finish_reason": "tool_calls",
        "tool_calls": (call,),
    }
    with pytest.raises(Malformed, match="either `text` or `message`"):
        response({"choices": [{"text": "a", "message": {"content": "b"}}]})
