"""Streams of inference: chunks in order, keep-alive comments, line breaks, errors, clients that disconnect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.api import chat_handler
from services.inference.api.response_schemas import ChunkEncoder, server_sent_event
from services.inference.core.generation_request import Piece
from shared.errors import BrokerUnavailable
from tests.inference_app import BODY, CHAT, App, chunks_of, running

ODD_TEXT = "a\u2028b\u2029c\u0085d\r\ne\rf\ng\x0bh\x0ci\x1cj\x1dk\x1el\x00m\u200d\U0001f600"
KEEP_ALIVE = ": keep-alive"


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with running(App()) as app:
        yield app


@pytest.fixture
def quick_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_handler, "KEEP_ALIVE_S", 0.05)


def events_of(answer: httpx.Response) -> list[str]:
    """Return the events of a stream. Each one ends with an empty line."""
    assert answer.text.endswith("\n\n")
    return answer.text.removesuffix("\n\n").split("\n\n")


async def wait_until_busy(app: App) -> None:
    assert await asyncio.to_thread(app.engine.busy.wait, 5)


async def test_chunks_are_role_text_finish_usage_and_done(app: App) -> None:
    answer = await app.chat(stream=True, n=2, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    *events, done = events_of(answer)
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    *with_choices, last = chunks
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:2]] == [
        {"role": "assistant", "content": ""}
    ] * 2
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in with_choices if chunk["choices"][0]["index"] == index]
        assert "".join(each["delta"].get("content", "") for each in own) == "hello"
        assert [each["finish_reason"] for each in own] == [*[None] * (len(own) - 1), "stop"]
    assert {chunk["usage"] for chunk in with_choices} == {None}
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 12)


async def test_usage_is_only_sent_on_request(app: App) -> None:
    assert all("usage" not in chunk for chunk in chunks_of(await app.chat(stream=True)))


# --- keep-alive ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_keep_alive")
async def test_silent_stream_has_comments_before_the_first_token(app: App) -> None:
    app.engine.resume.clear()
    running_chat = asyncio.create_task(app.chat(stream=True))
    await wait_until_busy(app)
    await asyncio.sleep(0.3)
    app.engine.resume.set()
    answer = await running_chat
    events = events_of(answer)
    assert answer.status_code == 200
    assert events[:2] == [KEEP_ALIVE] * 2
    first = next(event for event in events if event != KEEP_ALIVE)
    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks_of(answer)) == "hello"
    assert events[-1] == "data: [DONE]"


@pytest.mark.usefixtures("quick_keep_alive")
async def test_slow_tokens_have_comments_between_them() -> None:
    async with running(App(seconds_per_token=0.2)) as app:
        answer = await app.chat(stream=True)
    kinds = ["comment" if event == KEEP_ALIVE else "chunk" for event in events_of(answer)]
    last_text = max(index for index, event in enumerate(events_of(answer)) if '"content":"o"' in event)
    assert "comment" in kinds[kinds.index("chunk") : last_text]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks_of(answer)) == "hello"


async def test_quick_stream_has_no_comments(app: App) -> None:
    assert KEEP_ALIVE not in events_of(await app.chat(stream=True))


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_keep_alive")
async def test_failure_after_a_silence_is_an_error_event_without_done(app: App) -> None:
    app.engine.resume.clear()
    app.engine.failure = RuntimeError("no memory at 10.0.0.7")
    running_chat = asyncio.create_task(app.chat(stream=True))
    await wait_until_busy(app)
    await asyncio.sleep(0.2)
    app.engine.resume.set()
    answer = await running_chat
    [error] = [event for event in events_of(answer) if event != KEEP_ALIVE]
    content = json.loads(error.removeprefix("data: "))["error"]
    assert set(content) == {"message", "type", "param", "code"}
    assert (content["type"], content["code"]) == ("server_error", "generation_failed")
    assert "10.0.0.7" not in answer.text
    assert [record.status for record in app.records()] == ["failed"]


async def test_unrecorded_answer_of_strict_delivery_ends_in_an_error_event(app: App) -> None:
    app.publisher.failure = BrokerUnavailable("Kafka is unavailable")
    answer = await app.chat(stream=True)
    last = json.loads(events_of(answer)[-1].removeprefix("data: "))
    assert last["error"]["code"] == "broker_unavailable"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks_of(answer)[:-1])


# --- line breaks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [str.splitlines, lambda text: text.split("\n")], ids=["unicode", "lf"])
async def test_no_text_breaks_an_event_in_two(split: Any) -> None:
    async with running(App(answer=lambda request, choice: ODD_TEXT)) as app:
        answer = await app.chat(stream=True)
    lines = [line for line in split(answer.text) if line]
    assert all(line.startswith("data: ") for line in lines)
    chunks = [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == ODD_TEXT


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_one_line_of_an_event(text: str) -> None:
    event = server_sent_event({"text": text}).decode()
    assert event.splitlines() == [event.removesuffix("\n\n"), ""]
    assert json.loads(event.removeprefix("data: ")) == {"text": text}


def test_piece_without_output_is_no_chunk() -> None:
    encoder = ChunkEncoder(response_id="r", created=1, version="v", with_usage=False)
    assert encoder.piece(Piece(0, "", "stop")) == b""


# --- disconnects --------------------------------------------------------------------------------------------------


async def call(app: App, body: dict[str, Any], disconnect: asyncio.Event) -> list[dict[str, Any]]:
    """Send a chat as a server would, disconnect when the event is set, and return what the application sent."""
    requests = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if requests:
            return requests.pop()
        await disconnect.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    await app.app(scope, receive, send)  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.usefixtures("quick_keep_alive")
@pytest.mark.parametrize("silence_s", [0.0, 0.2])
async def test_client_that_leaves_a_queue_frees_its_version(app: App, stream: bool, silence_s: float) -> None:
    app.engine.resume.clear()
    disconnect = asyncio.Event()
    chat = asyncio.create_task(call(app, BODY | {"stream": stream}, disconnect))
    await wait_until_busy(app)
    await asyncio.sleep(silence_s)
    disconnect.set()
    await asyncio.wait_for(chat, 5)
    app.engine.resume.set()
    await until(lambda: [record.status for record in app.records()] == ["cancelled"])
    assert sum(app.registry.in_flight().values()) == 0


async def test_client_that_leaves_a_stream_ends_its_generation() -> None:
    async with running(App(max_context=4000, answer=lambda *_: "x" * 3000, seconds_per_token=0.01)) as app:
        disconnect = asyncio.Event()
        chat = asyncio.create_task(call(app, BODY | {"stream": True, "max_tokens": 1000}, disconnect))
        await asyncio.sleep(0.3)
        disconnect.set()
        sent = await asyncio.wait_for(chat, 5)
        await until(lambda: [record.status for record in app.records()] == ["cancelled"])
        assert app.records()[0].usage.completion_tokens < 1000
        assert any(b"delta" in message.get("body", b"") for message in sent)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition was not met in time")
