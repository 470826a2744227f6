"""Options of a request on their way through the vLLM engine: penalties, log-probabilities, formats, tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.inference.core.generation_options import GenerationOptions
from services.inference.core.generation_request import (
    ContextExceeded,
    FunctionCall,
    GenerationResult,
    InvalidParameter,
    Sampling,
    TopLogprob,
)
from services.inference.engine.vllm.engine import VllmEngine
from shared.events import Message
from tests.fake_vllm import FakeVllm
from tests.inference_factories import RecordingListener, generation_request, make_vllm_engine, submit

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


@pytest.fixture
def server(tiny_model: Path) -> Iterator[FakeVllm]:
    server = FakeVllm(str(tiny_model), max_model_len=1000)
    yield server
    server.close()


@pytest.fixture
def engine(server: FakeVllm, tiny_model: Path, tmp_path: Path) -> Iterator[VllmEngine]:
    engine = make_vllm_engine([server], tiny_model, tmp_path)
    engine.start().result(20)
    yield engine
    engine.stop(5)


def options(**values: Any) -> GenerationOptions:
    return GenerationOptions.model_validate(values, strict=False)


def ask(engine: VllmEngine, **fields: Any) -> RecordingListener:
    listener = RecordingListener()
    submit(engine, generation_request(**({"max_tokens": 8} | fields)), listener)
    return listener


def answer(engine: VllmEngine, **fields: Any) -> GenerationResult:
    return ask(engine, **fields).result(20)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("repetition_penalty", 1.2),
        ("logit_bias", {"5": -100.0}),
        ("top_k", 40),
        ("min_p", 0.1),
        ("min_tokens", 3),
        ("allowed_token_ids", [1, 2]),
        ("bad_words", ["no"]),
        ("response_format", {"type": "json_object"}),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        ),
        ("structured_outputs", {"regex": "a+"}),
    ],
)
def test_option_reaches_the_server_as_it_is(
    server: FakeVllm, engine: VllmEngine, option: str, value: Any
) -> None:
    assert option in engine.supported_options()
    assert answer(engine, options=options(**{option: value})).status == "completed"
    assert server.bodies[-1][option] == value


def test_no_default_of_the_server_changes_an_answer(server: FakeVllm, engine: VllmEngine) -> None:
    answer(engine, sampling=Sampling(0.7, 0.9, 3))
    body = server.bodies[-1]
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.7, 0.9, 3)
    neutral = ("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    assert [body[name] for name in neutral] == [0, 0.0, 1.0, 0.0, 0.0]


def test_stop_tokens_are_added_and_none_remain_if_the_end_is_ignored(
    server: FakeVllm, engine: VllmEngine
) -> None:
    answer(engine, options=options(stop_token_ids=[7]))
    assert server.bodies[-1]["stop_token_ids"] == [0, 7]
    answer(engine, options=options(ignore_eos=True))
    assert server.bodies[-1]["stop_token_ids"] == []


def test_log_probabilities_have_the_form_of_chats(server: FakeVllm, engine: VllmEngine) -> None:
    listener = ask(engine, options=options(logprobs=True, top_logprobs=2), max_tokens=3)
    [choice] = listener.result(20).choices
    assert server.bodies[-1]["logprobs"] == 2
    assert "top_logprobs" not in server.bodies[-1]
    assert "".join(each.token for each in choice.logprobs) == choice.text
    assert [each.logprob for each in choice.logprobs] == [-2.5] * 3
    assert choice.logprobs[0].bytes == tuple(choice.text[0].encode())
    assert choice.logprobs[0].top == (TopLogprob("?", -0.5, (63,)), TopLogprob("\ufffd", -1.5, None))
    pieces = [logprob for piece in listener.pieces for logprob in piece.logprobs]
    assert tuple(pieces) == choice.logprobs


def test_log_probabilities_without_alternatives(server: FakeVllm, engine: VllmEngine) -> None:
    [choice] = answer(engine, options=options(logprobs=True), max_tokens=2).choices
    assert [each.top for each in choice.logprobs] == [(), ()]


def test_value_that_the_server_refuses_is_named(engine: VllmEngine) -> None:
    listener = RecordingListener()
    request = generation_request(options=options(logit_bias={"999999999": 1.0}))
    with pytest.raises(InvalidParameter, match="not in the vocabulary") as error:
        submit(engine, request, listener)
    assert error.value.param == "logit_bias"
    assert listener.results == []


# --- tools --------------------------------------------------------------------------------------------------------


def test_tool_call_arrives_with_its_arguments(server: FakeVllm, engine: VllmEngine) -> None:
    listener = ask(engine, options=options(tools=TOOLS, tool_choice="required"))
    result = listener.result(20)
    [choice] = result.choices
    assert choice.tool_calls == (FunctionCall("call-1", "weather", '{"city":"Rome"}'),)
    assert (choice.text, choice.finish_reason) == ("", "tool_calls")
    assert listener.pieces[-1].finish_reason == "tool_calls"
    assert result.usage.prompt_tokens > 100  # the server counted
    assert server.bodies[-1]["tools"] == TOOLS


def test_conversation_with_tool_calls_is_passed_on(server: FakeVllm, engine: VllmEngine) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    conversation = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ]
    messages = tuple(Message.model_validate(message) for message in conversation)
    assert answer(engine, messages=messages, max_tokens=4).choices[0].text != ""
    sent = server.bodies[-1]["messages"]
    assert sent == [conversation[0] | {"role": "system"}, *conversation[1:]]


@pytest.mark.parametrize("where", ["message", "tool", "arguments"])
def test_control_text_beside_tools_is_refused(engine: VllmEngine, where: str) -> None:
    """The server would make special tokens of it."""
    text = "<|im_end|>"
    tools = [{"type": "function", "function": {"name": "f", "description": text if where == "tool" else ""}}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": f'{{"a":"{text}"}}'}}
    messages = [Message(role="user", content=text if where == "message" else "hi")]
    if where == "arguments":
        messages.append(Message.model_validate({"role": "assistant", "content": "", "tool_calls": [call]}))
    request = generation_request(messages=tuple(messages), options=options(tools=tools))
    with pytest.raises(InvalidParameter) as error:
        submit(engine, request, RecordingListener())
    assert error.value.param == {"message": "messages[0]", "tool": "tools", "arguments": "messages[1]"}[where]


def test_context_counts_the_tools_too(server: FakeVllm, engine: VllmEngine) -> None:
    result = answer(engine, options=options(tools=TOOLS), max_tokens=5000)
    assert result.choices[0].finish_reason == "length"
    assert result.usage.prompt_tokens + result.usage.completion_tokens == server.max_model_len
    with pytest.raises(ContextExceeded):
        submit(
            engine,
            generation_request(prompt="x" * 900, options=options(tools=TOOLS)),
            RecordingListener(),
        )
