"""A wrapped OpenAI client records every chat completion, and changes nothing for the app."""

from __future__ import annotations

import gc
import gzip
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import APIStatusError, AsyncOpenAI, OpenAI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from loopwright.completion import AnswerObserver, CompletionReader
from loopwright.integrations.openai import wrap
from tests.asgi_server import listening

MESSAGES: Any = [{"role": "user", "content": "Capital of New Zealand?"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"of": "NZ"}'}}
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def completion(model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model, "choices": choices,
            "usage": USAGE}  # fmt: skip


def choice(index: int, **message: Any) -> dict[str, Any]:
    return {"index": index, "finish_reason": "stop", "message": {"role": "assistant", **message}}


def delta(index: int, finish_reason: str | None = None, **content: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "other-model",
            "choices": [{"index": index, "delta": content, "finish_reason": finish_reason}]}  # fmt: skip


STREAM = [
    delta(0, role="assistant", content="Welling"),
    delta(1, content="Auck"),
    delta(0, content="ton."),
    delta(1, "stop", content="land"),
    delta(0, tool_calls=[{"index": 0, "id": "c1", "function": {"name": "look_up", "arguments": '{"of": '}}]),
    delta(0, "tool_calls", tool_calls=[{"index": 0, "function": {"arguments": '"NZ"}'}}]),
]


def events(parts: list[dict[str, Any]]) -> list[bytes]:
    return [f"data: {json.dumps(part)}\n\n".encode() for part in parts] + [b"data: [DONE]\n\n"]


async def answer(request: Request) -> Response:
    """Answer as the model's name says."""
    body = await request.json()
    model = body["model"]
    if model == "refuses":
        return JSONResponse({"error": {"message": "no"}}, 400)
    if model == "json":
        return JSONResponse(completion(model, [choice(0, content='{"city": "Wellington"}')]))
    if model == "without an end":
        return StreamingResponse(iter(events(STREAM)[:-1]), media_type="text/event-stream")
    if model == "compressed":
        content = gzip.compress(json.dumps(completion(model, [choice(0, content="Wellington.")])).encode())
        return Response(content, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})
    if body.get("stream"):

        async def stream() -> AsyncIterator[bytes]:
            for event in events(STREAM):
                yield event
                if model == "breaks":
                    raise ConnectionError("the model crashed")

        return StreamingResponse(stream(), media_type="text/event-stream")
    choices = [
        choice(0, content="Wellington."),
        choice(1, content=None, tool_calls=[CALL]),
        choice(2, content=None, refusal="No."),
    ]
    return JSONResponse(completion(model, choices[: body.get("n") or 1]))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    routes = [Route(path, answer, methods=["POST"]) for path in ("/v1/chat/completions", "/v1/embeddings")]
    with listening(Starlette(routes=routes)) as url:
        yield f"{url}/v1"


class Recorder:
    def __init__(self) -> None:
        self.recorded: list[Mapping[str, Any]] = []

    def record(self, response: Mapping[str, Any]) -> None:
        self.recorded.append(response)


class Broken:
    def record(self, response: Mapping[str, Any]) -> None:
        raise OSError("the disk is full")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def chat(url: str, recorder: Recorder) -> Iterator[OpenAI]:
    # Nothing else refers to the original client, whose end closes its connections.
    client = wrap(
        OpenAI(base_url=url, api_key="unused", max_retries=0), recorder, metadata={"app": "test"}, line="a"
    )
    gc.collect()
    yield client
    client.close()


def test_completion_is_recorded_as_the_app_got_it(chat: OpenAI, recorder: Recorder) -> None:
    got = chat.chat.completions.create(
        model="m", messages=MESSAGES, n=3, user="ann", metadata={"page": "help"}
    )
    (found,) = recorder.recorded
    assert got.choices[0].message.content == "Wellington."
    assert found["response_id"] == got.id
    assert (found["version"], found["user_id"], found["status"], found["line"]) == (
        "m",
        "ann",
        "completed",
        "a",
    )
    assert found["messages"] == MESSAGES
    assert [each["text"] for each in found["choices"]] == ["Wellington.", "", "No."]
    assert found["choices"][1]["tool_calls"] == [CALL]
    assert found["usage"] == {"prompt_tokens": 7, "completion_tokens": 2}
    assert found["metadata"] == {"page": "help", "app": "test"}
    assert found["latency_ms"] > 0 and "first_token_ms" not in found


def test_parsed_compressed_and_raw_answers_are_recorded(chat: OpenAI, recorder: Recorder) -> None:
    class City(BaseModel):
        city: str

    parsed = chat.chat.completions.parse(model="json", messages=MESSAGES, response_format=City)
    assert parsed.choices[0].message.parsed == City(city="Wellington")
    assert chat.chat.completions.create(model="compressed", messages=MESSAGES).choices[0].message.content
    raw = chat.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
    assert raw.parse().choices[0].message.content == "Wellington."
    assert [each["choices"][0]["text"] for each in recorder.recorded] == [
        '{"city": "Wellington"}', "Wellington.", "Wellington.",
    ]  # fmt: skip


def check_stream(found: Mapping[str, Any]) -> None:
    assert [each["text"] for each in found["choices"]] == ["Wellington.", "Auckland"]
    assert [each["finish_reason"] for each in found["choices"]] == ["tool_calls", "stop"]
    assert found["choices"][0]["tool_calls"] == [CALL]
    assert (found["status"], found["version"]) == ("completed", "other-model")
    assert 0 < found["first_token_ms"] <= found["latency_ms"]


def test_stream_is_recorded_once_with_all_its_parts(chat: OpenAI, recorder: Recorder) -> None:
    chunks = list(chat.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    assert len(chunks) == len(STREAM)
    with chat.chat.completions.stream(model="m", messages=MESSAGES) as stream:
        assert stream.get_final_completion().choices[0].message.content == "Wellington."
    first, second = recorder.recorded
    check_stream(first)
    check_stream(second)


def test_stream_that_just_ends_is_complete(chat: OpenAI, recorder: Recorder) -> None:
    list(chat.chat.completions.create(model="without an end", messages=MESSAGES, stream=True))
    check_stream(recorder.recorded[0])


@pytest.mark.parametrize("close", [True, False])
def test_stream_that_the_app_leaves_is_recorded_as_far_as_it_read(
    chat: OpenAI, recorder: Recorder, *, close: bool
) -> None:
    stream = chat.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    assert next(stream).choices[0].delta.content == "Welling"
    if close:
        stream.close()
    del stream
    gc.collect()
    (found,) = recorder.recorded
    assert found["status"] == "cancelled"
    assert found["choices"][0]["text"].startswith("Welling")


def test_broken_stream_is_recorded_as_failed_and_its_error_reaches_the_app(
    chat: OpenAI, recorder: Recorder
) -> None:
    with pytest.raises(Exception, match=r"peer closed|incomplete|Connection error"):
        list(chat.chat.completions.create(model="breaks", messages=MESSAGES, stream=True))
    (found,) = recorder.recorded
    assert (found["status"], found["choices"][0]["text"]) == ("failed", "Welling")
    assert found["error"]


@pytest.mark.parametrize("model", ["assistant@v12-0123abcd", "assistant@base-00000000"])
def test_answers_of_loopwright_are_not_recorded_twice(chat: OpenAI, recorder: Recorder, model: str) -> None:
    chat.chat.completions.create(model=model, messages=MESSAGES)
    assert recorder.recorded == []


def test_errors_and_other_routes_are_not_recorded(chat: OpenAI, recorder: Recorder) -> None:
    with pytest.raises(APIStatusError):
        chat.chat.completions.create(model="refuses", messages=MESSAGES)
    chat.embeddings.with_raw_response.create(model="m", input="text")
    assert recorder.recorded == []


def test_user_may_be_a_function_of_the_request(url: str, recorder: Recorder) -> None:
    plain = OpenAI(base_url=url, api_key="unused")
    chat = wrap(plain, recorder, user_id=lambda body: body["messages"][0]["name"])
    chat.chat.completions.create(model="m", messages=[{**MESSAGES[0], "name": "bob"}])
    plain.chat.completions.create(model="m", messages=MESSAGES)
    assert [each["user_id"] for each in recorder.recorded] == ["bob"], "the given client is not changed"
    chat.close()


@pytest.mark.parametrize("broken", [Broken(), None])
def test_what_goes_wrong_never_reaches_the_app(url: str, broken: Broken | None, recorder: Recorder) -> None:
    def fails(_: Mapping[str, Any]) -> str:
        raise KeyError("user")

    chat = wrap(OpenAI(base_url=url, api_key="unused"), broken or recorder, user_id=None if broken else fails)
    assert chat.chat.completions.create(model="m", messages=MESSAGES).choices[0].message.content
    assert len(list(chat.chat.completions.create(model="m", messages=MESSAGES, stream=True))) == len(STREAM)
    assert recorder.recorded == []
    chat.close()


async def test_asynchronous_client_records_the_same(url: str, recorder: Recorder) -> None:
    async with wrap(AsyncOpenAI(base_url=url, api_key="unused"), recorder) as chat:
        got = await chat.chat.completions.create(model="m", messages=MESSAGES, safety_identifier="eve")
        assert got.choices[0].message.content == "Wellington."
        stream = await chat.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        assert len([chunk async for chunk in stream]) == len(STREAM)
        left = await chat.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        async for _ in left:
            break
        await left.close()
    whole, streamed, cancelled = recorder.recorded
    assert (whole["user_id"], whole["choices"][0]["text"]) == ("eve", "Wellington.")
    check_stream(streamed)
    assert cancelled["status"] == "cancelled"


def observed(feed: Callable[[AnswerObserver], None], *, is_stream: bool) -> tuple[list[Any], list[Exception]]:
    reports: list[Any] = []
    failures: list[Exception] = []
    observer = AnswerObserver(
        CompletionReader({"model": "m", "messages": MESSAGES}, 0.0, {}),
        is_stream=is_stream,
        report=reports.append,
        failed=failures.append,
        clock=lambda: 1.0,
    )
    feed(observer)
    return reports, failures


@given(st.lists(st.integers(1, 400)))
def test_answer_is_the_same_however_its_bytes_arrive(cuts: list[int]) -> None:
    content = b"".join(events(STREAM)).replace(b"\n", b"\r\n")

    def feed(observer: AnswerObserver) -> None:
        at = 0
        for size in [*cuts, len(content)]:
            observer.data(content[at : at + size])
            at += size
        observer.end("completed")

    reports, failures = observed(feed, is_stream=True)
    assert failures == []
    check_stream(reports[0])
    assert len(reports) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["id", "model", "choices", "delta", "message", "index", "content", "usage",
                                       "tool_calls", "function", "arguments", "error"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(JSON, max_size=4) | st.binary(max_size=60), st.booleans())
def test_no_answer_raises(parts: list[Any] | bytes, is_stream: bool) -> None:
    if isinstance(parts, bytes):
        content = parts
    elif is_stream:
        content = b"".join(f"data: {json.dumps(part)}\n\n".encode() for part in parts)
    else:
        content = json.dumps(parts[0] if parts else None).encode()

    def feed(observer: AnswerObserver) -> None:
        observer.data(content)
        observer.end("completed")

    reports, failures = observed(feed, is_stream=is_stream)
    assert len(reports) + len(failures) <= 1
