"""The door: OpenAI's shapes, bounds and errors, with a model that is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from threading import Event
from typing import Any

import httpx
import pytest

from services.inference.api.routes import MAX_BODY_BYTES, AppDependencies, create_app
from services.inference.engine.transformers_engine import TransformersEngine
from services.inference.response_publisher import StrictResponsePublisher
from services.inference.settings import InferenceSettings
from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import Refusal
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import MemoryLog, MemoryPublisher
from shared.errors import BrokerUnavailable
from shared.events import ChatResponse
from shared.pseudonym import Pseudonymiser
from shared.telemetry import Readiness
from tests.inference_factories import BASE, LINE, FakeComputer, decode

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": LINE, "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


class FakePrompts:
    context = 100
    stops: tuple[str, ...] = ()

    def tokens(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        return [1] * sum(len(text) for _, text in turns)


class Door:
    """The whole service but for the model, on a log in memory."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.publisher = MemoryPublisher(self.log, "inference")
        self.computer = FakeComputer()
        self.engine = TransformersEngine(
            lambda: self.computer, decode, base=BASE.version, max_waiting=1, batch_wait_s=0.0
        )
        self.serving = VersionRegistry(LINE, BASE, self.engine.unload)
        self.readiness = Readiness("model")
        self.readiness.set("model", ok=True)
        self.refusals: tuple[Refusal, ...] = ()
        parts = AppDependencies(
            settings=InferenceSettings(line=LINE),
            serving=self.serving,
            engine=self.engine,
            prompts=FakePrompts(),
            recorder=StrictResponsePublisher(self.publisher),
            readiness=self.readiness,
            pseudonyms=Pseudonymiser(b"k" * 32),
            clock=ManualClock(),
            refusals=lambda: self.refusals,
        )
        transport = httpx.ASGITransport(create_app(parts))
        self.http = httpx.AsyncClient(transport=transport, base_url="http://door")

    async def ask(self, **also: Any) -> httpx.Response:
        return await self.http.post(CHAT, json=ASK | also)

    def records(self) -> list[ChatResponse]:
        return [ChatResponse.from_json(record.value) for record in self.log.records("chat.responses")]


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    door = Door()
    door.engine.start()
    await asyncio.wrap_future(door.engine.loaded)
    yield door
    if door.computer.gate is not None:
        door.computer.gate.set()
    await door.http.aclose()
    await asyncio.to_thread(door.engine.stop, 5)


async def test_an_answer_says_its_version_and_is_recorded_once(door: Door) -> None:
    answer = (await door.ask(user="anna", metadata={"page": "7"})).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == BASE.version
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    [record] = door.records()
    assert record.response_id == answer["id"]
    assert record.response_id.startswith("chatcmpl-")
    assert (record.status, record.version, record.line) == ("completed", BASE.version, LINE)
    assert record.text_of(0) == "hello"
    assert [m.content for m in record.messages] == ["hi"]
    assert record.metadata == {"page": "7"}
    assert record.latency_ms is not None
    assert record.first_token_ms is not None


async def test_the_users_own_id_never_enters_the_log(door: Door) -> None:
    await door.ask(user="anna@example.org")
    [raw] = door.log.records("chat.responses")
    assert raw.value is not None
    assert b"anna" not in raw.value
    assert door.records()[0].user_id == Pseudonymiser(b"k" * 32).of("anna@example.org")


async def test_a_trace_goes_on_in_the_record(door: Door) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    await door.http.post(CHAT, json=ASK, headers={"traceparent": trace})
    await door.http.post(CHAT, json=ASK, headers={"traceparent": "nonsense"})
    traces = [dict(record.headers)["traceparent"] for record in door.log.records("chat.responses")]
    assert trace.encode() in traces
    assert b"nonsense" not in traces


async def test_two_choices_are_two_choices(door: Door) -> None:
    answer = (await door.ask(n=2)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert len(door.records()[0].choices) == 2


async def test_the_stream_says_one_id_and_version_and_ends_with_usage(door: Door) -> None:
    answer = await door.ask(stream=True, stream_options={"include_usage": True})
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert {chunk["model"] for chunk in chunks} == {BASE.version}
    assert {chunk["id"] for chunk in chunks} == {door.records()[0].response_id}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "hello"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6


async def test_content_may_be_parts_of_text(door: Door) -> None:
    parts = [{"type": "text", "text": "good "}, {"type": "text", "text": "day"}]
    assert (await door.ask(messages=[{"role": "user", "content": parts}])).status_code == 200
    assert door.records()[0].messages[0].content == "good day"


async def test_unknown_fields_and_nulls_are_ignored(door: Door) -> None:
    answer = await door.ask(user=None, stop=None, logit_bias={"1": 2}, service_tier="auto", metadata=None)
    assert answer.status_code == 200


async def test_a_stop_string_ends_the_answer_before_it(door: Door) -> None:
    answer = (await door.ask(stop=["l"])).json()
    assert answer["choices"][0]["message"]["content"] == "he"
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_both_names_of_the_bound_bound(door: Door, name: str) -> None:
    answer = (await door.ask(**{name: 2})).json()
    assert answer["choices"][0]["message"]["content"] == "he"
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_an_unknown_model_is_404_in_openais_words(door: Door) -> None:
    answer = await door.ask(model="gpt-4o")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == (
        "model_not_found",
        "invalid_request_error",
        "model",
    )
    assert LINE in error["message"]


async def test_a_conversation_that_does_not_fit_is_said(door: Door) -> None:
    answer = await door.ask(messages=[{"role": "user", "content": "x" * 100}])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": "x"}] * 65},
        {"messages": [{"role": "user", "content": "x" * 32_769}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 20_000}] * 2}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"n": 9},
        {"n": 0},
        {"temperature": -1},
        {"temperature": 3},
        {"top_p": 0},
        {"max_tokens": 0},
        {"stop": ["a", "b", "c", "d", "e"]},
        {"stop": ""},
        {"stop": "x" * 257},
        {"seed": 2**64},
        {"metadata": {str(n): "x" for n in range(17)}},
        {"metadata": {"a": {"deep": "er"}}},
        {"user": "x" * 513},
    ],
)
async def test_what_is_out_of_bounds_is_400_in_openais_words(door: Door, wrong: dict[str, Any]) -> None:
    answer = await door.ask(**wrong)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert door.records() == []


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b"\xff\xfe", b'"' + b"\\ud800" + b'"', b"[" * 100_000,
        b'{"model":"assistant","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"assistant","temperature":NaN,"messages":[{"role":"user","content":"x"}]}',
        b'{"model":"assistant","messages":[{"role":"user","content":"x"}],"metadata":' + b'{"a":' * 5000 + b"1",
    ],
    ids=range(9),
)  # fmt: skip
async def test_hostile_bodies_are_400(door: Door, body: bytes) -> None:
    answer = await door.http.post(CHAT, content=body)
    assert answer.status_code == 400
    assert "message" in answer.json()["error"]


async def test_a_body_that_is_too_large_is_413_in_openais_words_declared_or_not(door: Door) -> None:
    async def drip() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 65_536 + 1):
            yield b" " * 65_536

    for content in (b" " * (MAX_BODY_BYTES + 1), drip()):
        answer = await door.http.post(CHAT, content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_full_queue_is_429_with_a_time_to_come_back(door: Door) -> None:
    door.computer.gate = Event()
    running = asyncio.create_task(door.ask())
    assert await asyncio.to_thread(door.computer.entered.wait, 5)
    waiting = asyncio.create_task(door.ask())
    refused = await first_of(door, status=429)
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "queue_full"
    door.computer.gate.set()
    assert {(await running).status_code, (await waiting).status_code} == {200}
    assert door.serving.in_memory() == {BASE.version: 0}


async def first_of(door: Door, status: int) -> httpx.Response:
    """Asks until the answer has this status; the queue of one takes at most one of them."""
    async with asyncio.timeout(10):
        while True:
            asked = asyncio.create_task(door.ask())
            done, _ = await asyncio.wait({asked}, timeout=0.2)
            if done and asked.result().status_code == status:
                return asked.result()


async def test_a_failed_generate_is_500_and_recorded_as_failed(door: Door) -> None:
    door.computer.failure = RuntimeError("out of memory")
    for stream in (False, True):
        answer = await door.ask(stream=stream)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "generation_failed"
    assert [record.status for record in door.records()] == ["failed", "failed"]
    assert "out of memory" in (door.records()[0].error or "")
    door.computer.failure = None
    assert (await door.ask()).status_code == 200


async def test_strict_delivery_without_kafka_is_503(door: Door) -> None:
    door.publisher.failure = BrokerUnavailable("Kafka is away")
    answer = await door.ask()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "broker_unavailable"
    assert door.records() == []


async def test_strict_delivery_without_kafka_does_not_end_a_stream_well(door: Door) -> None:
    door.publisher.failure = BrokerUnavailable("Kafka is away")
    text = (await door.ask(stream=True)).text
    assert "[DONE]" not in text
    assert '"finish_reason":"stop"' not in text
    assert "broker_unavailable" in text


async def test_a_replica_that_is_not_ready_answers_nobody(door: Door) -> None:
    door.readiness.set("model", ok=False, detail="loading")
    answer = await door.ask()
    assert answer.status_code == 503
    assert "model: loading" in answer.json()["error"]["message"]
    assert (await door.http.get("/readyz")).status_code == 503
    assert (await door.http.get("/livez")).status_code == 200


async def test_the_models_are_the_line_and_what_is_loaded(door: Door) -> None:
    door.refusals = (Refusal("assistant@v1-00000000", 4, "bad_artifact", "altered"),)
    listed = (await door.http.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == [LINE, BASE.version]
    assert listed["data"][0]["loopwright"]["stable"] == BASE.version
    assert listed["data"][0]["loopwright"]["refused"][0]["message"] == "altered"
    assert (await door.http.get(f"/v1/models/{BASE.version}")).json()["loopwright"]["role"] == "stable"
    missing = await door.http.get("/v1/models/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_metrics_count_chats_by_version(door: Door) -> None:
    await door.ask()
    text = (await door.http.get("/metrics")).text
    assert f'loopwright_chat_requests_total{{status="completed",version="{BASE.version}"}}' in text
