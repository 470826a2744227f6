"""Fields of a chat request: which reach the engine, which are ignored, and which are refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference import response_stream
from services.inference.api.request_schemas import (
    IGNORED_FIELDS,
    UNSUPPORTED_FIELDS,
    ChatRequest,
    parse_chat_request,
)
from services.inference.core.generation_options import OPTION_NAMES, GenerationOptions
from services.inference.core.generation_request import (
    ChoiceResult,
    FunctionCall,
    GenerationResult,
    InvalidParameter,
    Sampling,
    ToolCallDelta,
    UnknownParameter,
    UnsupportedParameter,
    join_tool_calls,
)
from services.inference.response_stream import RequestDetails, response_record
from shared.events import MAX_CONTENT, MAX_MESSAGES, ChatResponse, Choice, Usage
from shared.limits import MAX_RESPONSE_BYTES
from tests.inference_app import BODY, CHAT, App, chunks_of, running, weather_answer, weather_calls
from tests.inference_factories import LINE, generation_request

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a kettle up.",
        "parameters": {"type": "object", "properties": {"kettle": {"enum": ["K2", None]}}},
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": {"type": "object", "default": None}, "strict": True},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"kettle": "K2"}'}}
OPTIONS: dict[str, Any] = {
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "look_up"}},
    "parallel_tool_calls": False,
    "response_format": SCHEMA,
    "logprobs": True,
    "top_logprobs": 3,
    "presence_penalty": -2.0,
    "frequency_penalty": 2.0,
    "logit_bias": {"50256": -100.0},
    "reasoning_effort": "low",
    "top_k": 40,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "min_tokens": 5,
    "ignore_eos": True,
    "stop_token_ids": [1, 2],
    "allowed_token_ids": [3],
    "bad_words": ["darn"],
    "structured_outputs": {"regex": "[a-z]+"},
}


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with running(App()) as app:
        yield app


def parse(**fields: Any) -> ChatRequest:
    return parse_chat_request(json.dumps(BODY | fields).encode())


# --- options ------------------------------------------------------------------------------------------------------


def test_every_option_has_a_value_in_these_tests() -> None:
    assert set(OPTIONS) == OPTION_NAMES


async def test_options_reach_the_engine_as_the_client_sent_them(app: App) -> None:
    assert (await app.chat(**OPTIONS)).status_code == 200
    [request] = app.engine.requests
    assert request.options.to_json() == OPTIONS
    assert request.options.names() == OPTION_NAMES


@pytest.mark.parametrize("name", sorted(OPTION_NAMES))
async def test_option_that_the_engine_lacks_is_refused_by_name(app: App, name: str) -> None:
    needed = {"tool_choice": "tools", "parallel_tool_calls": "tools", "top_logprobs": "logprobs"}.get(name)
    fields = {each: OPTIONS[each] for each in (name, needed) if each is not None}
    app.engine.options = OPTION_NAMES - {name}
    answer = await app.chat(**fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", name)
    assert name in error["message"]
    assert app.engine.requests == []
    assert app.records() == []
    app.engine.options = OPTION_NAMES
    assert (await app.chat(**fields)).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"tools": None, "tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"logprobs": False, "top_logprobs": 0},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}},
        {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "min_tokens": 0, "ignore_eos": False},
        {"top_k": 0, "stop_token_ids": [], "allowed_token_ids": [], "bad_words": []},
        dict.fromkeys(OPTION_NAMES),
    ],
    ids=range(8),
)
async def test_values_without_effect_need_no_support(app: App, fields: dict[str, Any]) -> None:
    app.engine.options = frozenset()
    assert (await app.chat(**fields)).status_code == 200
    assert app.engine.requests[0].options == GenerationOptions()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ],
)
async def test_invalid_option_is_refused_by_name(app: App, fields: dict[str, Any], param: str) -> None:
    answer = await app.chat(**fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"].startswith(param)


# --- other fields -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(IGNORED_FIELDS))
async def test_harmless_field_is_ignored(app: App, name: str) -> None:
    for value in (True, "auto", {"type": "content", "content": "x"}, None):
        assert (await app.chat(**{name: value})).status_code == 200


@pytest.mark.parametrize("name", sorted(UNSUPPORTED_FIELDS))
async def test_field_that_changes_the_answer_is_refused_by_name(app: App, name: str) -> None:
    answer = await app.chat(**{name: {"a": 1}})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", name)
    assert app.engine.requests == []
    for value in (None, *UNSUPPORTED_FIELDS[name][0]):
        assert (await app.chat(**{name: value})).status_code == 200


@pytest.mark.parametrize("name", ["temprature", "max_token", "Stop", "x" * 100, "\n"])
async def test_unknown_field_is_refused_by_name(app: App, name: str) -> None:
    answer = await app.chat(**{name: 1})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unknown_parameter")
    assert error["param"] == (name if name.isprintable() and len(name) < 65 else "...")
    assert (await app.chat(**{name: None})).status_code == 200


def test_no_field_is_in_two_lists() -> None:
    declared = set(ChatRequest.model_fields)
    assert not declared & IGNORED_FIELDS
    assert not declared & set(UNSUPPORTED_FIELDS)
    assert not IGNORED_FIELDS & set(UNSUPPORTED_FIELDS)


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2}, {"temperature": 0.0}, {"temperature": None}, {"top_p": 0}, {"top_p": 1e-300},
        {"top_p": 1}, {"max_tokens": 16.0}, {"max_completion_tokens": 1e18}, {"max_tokens": 10**30}, {"n": 8},
        {"n": 1.0}, {"n": None}, {"stop": []}, {"stop": None}, {"stop": "x" * 256}, {"stop": ["a"] * 4},
        {"seed": -(2**63)}, {"seed": 2**63 - 1}, {"seed": 5.0}, {"user": ""}, {"user": None}, {"metadata": {}},
        {"stream": None}, {"stream_options": None}, {"stream_options": {"include_usage": None, "other": 1}},
    ],
    ids=range(25),
)  # fmt: skip
async def test_extreme_but_legal_value_is_answered(app: App, fields: dict[str, Any]) -> None:
    answer = await app.chat(**fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "hi"}] * 65,
        [{"role": "user", "content": "h"}] * MAX_MESSAGES,
        [{"role": "user", "content": "long " * 70_000}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}] * 5_000}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": []}],
        [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi", "name": "ann"}],
        [{"role": "user", "content": "hi", "name": None, "tool_calls": None, "function_call": None}],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}],
        [{"role": "assistant", "content": "", "tool_calls": []}, {"role": "user", "content": "hi", "x": {}}],
    ],
    ids=range(10),
)
async def test_extreme_but_legal_conversation_is_answered(messages: list[dict[str, Any]]) -> None:
    async with running(App(max_context=1_000_000)) as app:
        answer = await app.chat(messages=messages)
        assert answer.status_code == 200, answer.text
        [record] = app.records()
        assert len(record.messages) == len(messages)
        assert record.messages == app.engine.requests[0].messages


def test_greedy_top_p_never_reaches_an_engine() -> None:
    assert parse(temperature=1.5, top_p=0, seed=3).sampling() == Sampling(0.0, 1.0, 3)
    assert parse(temperature=1.5, top_p=0.5).sampling() == Sampling(1.5, 0.5)
    assert parse(temperature=None).sampling() == Sampling(1.0, 1.0)


def test_most_messages_of_a_conversation_fit_into_a_record() -> None:
    smallest = len('{"role":"user","content":"hello"},')
    assert MAX_MESSAGES * smallest <= MAX_RESPONSE_BYTES


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages[0]"),
        ({"role": "user", "content": None}, "messages[0]"),
        ({"role": "system", "contents": "x"}, "messages[0]"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[0]"),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom"}]},
            "messages[0].tool_calls[0].type",
        ),
        ({"role": "assistant", "tool_calls": [CALL] * 129}, "messages[0].tool_calls"),
    ],
)
def test_invalid_message_is_refused_by_its_path(message: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        parse(messages=[message])
    assert refused.value.param == param
    assert "Value error" not in str(refused.value)


@pytest.mark.parametrize(
    "message",
    [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}],
        },
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]},
        {"role": "user", "content": [{"type": "whatever"}]},
        {"role": "assistant", "function_call": {"name": "f", "arguments": ""}},
        {"role": "assistant", "content": "", "audio": {"id": "a"}},
    ],
)
def test_contents_other_than_text_are_unsupported(message: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        parse(messages=[message])
    assert str(refused.value.param).startswith("messages[0]")
    assert "example.org" not in str(refused.value)


def test_text_and_refusals_of_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a", "cache_control": {}}, {"type": "refusal", "refusal": "b"}]
    chat = parse(messages=[{"role": "assistant", "content": parts}, {"role": "assistant", "refusal": "no"}])
    assert [message.to_message().content for message in chat.messages] == ["ab", "no"]


@given(st.dictionaries(st.sampled_from(sorted(OPTION_NAMES | {"n", "seed", "zz"})), st.integers(-3, 3)))
def test_parser_raises_nothing_but_its_own_errors(fields: dict[str, Any]) -> None:
    try:
        options = parse(**fields).options()
    except (InvalidParameter, UnknownParameter):
        return
    assert GenerationOptions.model_validate_json(json.dumps(options.to_json())) == options


# --- recorded requests of other clients ---------------------------------------------------------------------------

RECORDED: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).resolve().parents[1] / "data" / "client_requests.json").read_text()
)
"""Bodies that the scripts in `tests/clients` sent."""


@pytest.mark.parametrize("client", RECORDED)
async def test_requests_of_other_clients_are_answered(client: str) -> None:
    async with running(App(max_context=10_000, answer=weather_answer, calls=weather_calls)) as app:
        for body in RECORDED[client]:
            answer = await app.http.post(CHAT, json=body)
            assert answer.status_code == 200, (body, answer.text)
        calls = [choice.tool_calls for record in app.records() for choice in record.choices]
    assert any(calls)


# --- tools and logprobs -------------------------------------------------------------------------------------------


async def test_tool_calls_are_returned_and_recorded(app: App) -> None:
    answer = (await app.chat(tools=[TOOL], tool_choice="required", n=2)).json()
    for choice, recorded in zip(answer["choices"], app.records()[0].choices, strict=True):
        assert choice["finish_reason"] == "tool_calls"
        [call] = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "look_up", "arguments": "{}"}
        assert [recorded.model_dump()["tool_calls"][0]] == [call]
        assert recorded.finish_reason == "tool_calls"


async def test_streamed_tool_calls_join_to_the_recorded_ones(app: App) -> None:
    chunks = chunks_of(await app.chat(tools=[TOOL], tool_choice="required", stream=True))
    deltas = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert deltas[0]["type"] == "function"
    assert all("id" not in delta for delta in deltas[1:])
    joined = join_tool_calls(
        ToolCallDelta(d["index"], d.get("id"), d["function"].get("name"), d["function"]["arguments"])
        for d in deltas
    )
    [recorded] = app.records()[0].choices[0].tool_calls or ()
    assert joined == (FunctionCall(recorded.id, "look_up", "{}"),)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_conversation_with_tool_calls_reaches_engine_and_record(app: App) -> None:
    messages = [
        {"role": "user", "content": "How hot?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "90", "tool_call_id": "call_1", "name": "look_up"},
    ]
    assert (await app.chat(messages=messages, tools=[TOOL])).status_code == 200
    [record] = app.records()
    assert record.messages == app.engine.requests[0].messages
    sent = [message.model_dump(exclude_none=True) for message in record.messages]
    assert sent[1] == {"role": "assistant", "content": "", "tool_calls": (CALL,)}
    assert sent[2] == messages[2]


async def test_tool_calls_in_a_conversation_need_an_engine_with_tools(app: App) -> None:
    app.engine.options = OPTION_NAMES - {"tools"}
    called = {"role": "assistant", "content": "x", "tool_calls": [CALL]}
    answer = await app.chat(messages=[{"role": "user", "content": "hi"}, called])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] == "messages[1].tool_calls"


async def test_logprobs_cover_the_answer_streamed_or_not(app: App) -> None:
    whole = (await app.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in whole) == "hello"
    assert {len(token["top_logprobs"]) for token in whole} == {2}
    assert whole[0]["bytes"] == [ord("h")]
    chunks = chunks_of(await app.chat(logprobs=True, top_logprobs=2, stream=True))
    pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [token for piece in pieces for token in piece["content"]] == whole
    assert (await app.chat()).json()["choices"][0]["logprobs"] is None


def test_record_holds_whatever_a_model_calls() -> None:
    deltas = [ToolCallDelta(index, "a" * 999, "f" * 999, "{") for index in reversed(range(200))]
    calls = join_tool_calls([*deltas, ToolCallDelta(0, arguments="}")])
    assert [call.arguments for call in calls[:2]] == ["{}", "{"]
    result = GenerationResult(
        "completed", Usage(), (ChoiceResult(0, "x" * (MAX_CONTENT + 1), "tool_calls", calls),)
    )
    details = RequestDetails(LINE, None, {}, datetime(2026, 1, 1, tzinfo=UTC), "")
    record = response_record(generation_request(), result, details, latency_ms=1, first_token_ms=None)
    [choice] = ChatResponse.from_json(record.value).choices
    assert len(choice.text) == MAX_CONTENT
    recorded = choice.tool_calls or ()
    assert (len(recorded), len(recorded[0].id), len(recorded[0].function.name)) == (128, 256, 256)


async def test_result_that_is_not_recordable_is_answered_and_says_so(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an engine returns, its thread goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(response_stream, "response_record", lambda *_, **__: Choice(index=99, text=""))
        answer = (await app.chat()).json()
    assert answer["choices"][0]["message"]["content"] == "hello"
    assert answer["loopwright"]["recorded"] is False
    assert app.records() == []
    assert "loopwright" not in (await app.chat()).json()
    assert len(app.records()) == 1
