"""The official `openai` client, synchronous and asynchronous, over HTTP: what it can do, and the errors it raises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from services.inference.core.generation_options import OPTION_NAMES
from tests.inference_app import WEATHER, App, served, weather_answer, weather_calls
from tests.inference_factories import BASE, LINE

MESSAGES: Any = [{"role": "user", "content": "How warm is Oslo?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": WEATHER.name,
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


class Weather(BaseModel):
    city: str
    degrees: int


@pytest.fixture(scope="module")
def app() -> App:
    return App(max_context=10_000, answer=weather_answer, calls=weather_calls)


@pytest.fixture(scope="module")
def url(app: App) -> Iterator[str]:
    with served(app) as url:
        yield f"{url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        yield client


def create(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model=LINE, **({"messages": MESSAGES} | fields))


def test_answer_with_every_supported_field(client: OpenAI) -> None:
    answer = create(
        client, temperature=2, top_p=0, max_completion_tokens=16, stop=[], n=2, seed=5, user="ann", store=True,
        metadata={"page": "7"}, service_tier="auto", presence_penalty=0, stream=False, timeout=20,
    )  # fmt: skip
    assert [choice.message.content for choice in answer.choices] == ["hello", "hello"]
    assert answer.model == BASE.version
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_raw_response_has_the_headers_and_the_same_answer(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model=LINE, messages=MESSAGES)
    assert raw.status_code == 200
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.content == "hello"
    with client.chat.completions.with_streaming_response.create(
        model=LINE, messages=MESSAGES, stream=True
    ) as streamed:
        lines = [line for line in streamed.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


def test_stream_has_text_finish_reason_and_usage(client: OpenAI) -> None:
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "hello"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 6


def test_stream_helper_accumulates_text_and_tool_calls(client: OpenAI) -> None:
    with client.chat.completions.stream(model=LINE, messages=MESSAGES) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == "hello"
    with client.chat.completions.stream(model=LINE, messages=MESSAGES, tools=TOOLS) as stream:
        final = stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or []
    assert (call.id, call.function.name, call.function.arguments) == (
        WEATHER.id,
        WEATHER.name,
        WEATHER.arguments,
    )
    assert call.function.parsed_arguments == {"city": "Oslo"}
    assert final.choices[0].finish_reason == "tool_calls"


def test_tool_call_and_its_result_make_a_conversation(client: OpenAI) -> None:
    asked = create(client, tools=TOOLS, tool_choice="auto").choices[0]
    assert (asked.finish_reason, asked.message.content) == ("tool_calls", None)
    [call] = asked.message.tool_calls
    # The client's own message object is sent back, with all fields that it has.
    history = [*MESSAGES, asked.message, {"role": "tool", "tool_call_id": call.id, "content": "7 degrees"}]
    assert create(client, messages=history, tools=TOOLS).choices[0].message.content == "It is 7 degrees."
    dumped = [*MESSAGES, asked.message.model_dump(), history[-1]]
    assert create(client, messages=dumped, tools=TOOLS).choices[0].message.content == "It is 7 degrees."


def test_structured_output_is_parsed(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(model=LINE, messages=MESSAGES, response_format=Weather)
    assert parsed.choices[0].message.parsed == Weather(city="Oslo", degrees=7)


def test_logprobs_are_those_of_the_answer(client: OpenAI) -> None:
    tokens = create(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == "hello"
    assert {len(token.top_logprobs) for token in tokens} == {2}


def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [LINE, BASE.version]
    assert client.models.retrieve(LINE).owned_by == "loopwright"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"tools": TOOLS}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"verbosity": "low"}, "verbosity"),
    ],
)
def test_unsupported_field_is_a_bad_request_that_names_it(
    app: App, client: OpenAI, fields: dict[str, Any], param: str
) -> None:
    app.engine.options = frozenset()
    try:
        for stream in (False, True):
            with pytest.raises(BadRequestError) as refused:
                create(client, stream=stream, **fields)
            assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
    finally:
        app.engine.options = OPTION_NAMES


def test_misspelt_field_is_a_bad_request_that_names_it(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        create(client, extra_body={"temprature": 0.5})
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", "temprature")


def test_other_apis_are_not_found_and_name_the_one_to_use(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="/v1/chat/completions"):
        client.completions.create(model=LINE, prompt="hi")
    with pytest.raises(NotFoundError, match="/v1/chat/completions"):
        client.responses.create(model=LINE, input="hi")
    with pytest.raises(NotFoundError, match="embedding"):
        client.embeddings.create(model=LINE, input="hi")
    with pytest.raises(NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")


def test_failed_generation_raises_before_or_within_a_stream(app: App, client: OpenAI) -> None:
    app.engine.failure = RuntimeError("out of memory")
    try:
        for stream in (False, True):
            with pytest.raises(APIError) as failed:
                list(create(client, stream=stream))
            assert failed.value.code == "generation_failed"
    finally:
        app.engine.failure = None


async def test_asynchronous_client_answers_streams_and_calls_tools(url: str) -> None:
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        chat = client.chat.completions
        answer = await chat.create(model=LINE, messages=MESSAGES)
        assert answer.choices[0].message.content == "hello"
        stream = await chat.create(model=LINE, messages=MESSAGES, stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(texts) == "hello"
        calls = (await chat.create(model=LINE, messages=MESSAGES, tools=TOOLS)).choices[0].message.tool_calls
        assert calls is not None
        assert calls[0].id == WEATHER.id
