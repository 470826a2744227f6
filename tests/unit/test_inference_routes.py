"""HTTP API of inference: OpenAI's objects, limits and errors, with the in-memory engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from services.inference.api.routes import MAX_BODY_BYTES
from services.inference.core.generation_request import GenerationRequest, GenerationResult
from services.inference.response_publisher import SpoolResponsePublisher
from services.inference.response_stream import RequestDetails, response_record
from services.inference.spool import Spool
from services.inference.version_swap import Refusal
from shared.errors import BrokerUnavailable
from shared.events import ChatResponse, Message, Usage
from shared.pseudonym import Pseudonymiser
from shared.telemetry import Readiness
from tests.inference_app import BODY, CHAT, JSON, App, chunks_of, running
from tests.inference_factories import BASE, LINE


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with running(App()) as app:
        yield app


async def test_answer_names_its_version_and_is_recorded_once(app: App) -> None:
    answer = (await app.chat(user="anna", metadata={"page": "7"})).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == BASE.version
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    [record] = app.records()
    assert record.response_id == answer["id"]
    assert record.response_id.startswith("chatcmpl-")
    assert (record.status, record.version, record.line) == ("completed", BASE.version, LINE)
    assert record.text_of(0) == "hello"
    assert [m.content for m in record.messages] == ["hi"]
    assert record.metadata == {"page": "7"}
    assert record.latency_ms is not None
    assert record.first_token_ms is not None


async def test_user_id_enters_the_log_only_as_pseudonym(app: App) -> None:
    await app.chat(user="anna@example.org")
    [raw] = app.log.records("chat.responses")
    assert raw.value is not None
    assert b"anna" not in raw.value
    assert app.records()[0].user_id == Pseudonymiser(b"k" * 32).of("anna@example.org")


async def test_record_continues_the_trace_of_a_valid_traceparent(app: App) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    await app.http.post(CHAT, json=BODY, headers={"traceparent": trace})
    await app.http.post(CHAT, json=BODY, headers={"traceparent": "nonsense"})
    traces = [dict(record.headers)["traceparent"] for record in app.log.records("chat.responses")]
    assert trace.encode() in traces
    assert b"nonsense" not in traces


async def test_n_choices_are_returned_and_recorded(app: App) -> None:
    answer = (await app.chat(n=2)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert len(app.records()[0].choices) == 2


async def test_stream_has_one_id_and_version_and_ends_with_usage(app: App) -> None:
    answer = await app.chat(stream=True, stream_options={"include_usage": True})
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    assert {chunk["model"] for chunk in chunks} == {BASE.version}
    assert {chunk["id"] for chunk in chunks} == {app.records()[0].response_id}
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "hello"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6


async def test_text_parts_of_a_message_are_joined(app: App) -> None:
    parts = [{"type": "text", "text": "good "}, {"type": "text", "text": "day"}]
    assert (await app.chat(messages=[{"role": "user", "content": parts}])).status_code == 200
    assert app.records()[0].messages[0].content == "good day"


@pytest.mark.parametrize("stream", [False, True])
async def test_response_too_large_to_record_is_answered_and_says_so(stream: bool) -> None:
    app = App(max_context=1_000_000)
    app.engine.start()
    not_recorded = REGISTRY.get_sample_value(
        "loopwright_responses_not_recorded_total", {"reason": "too_large"}
    )
    answer = await app.chat(messages=[{"role": "user", "content": "x" * 32_000}] * 12, stream=stream)
    assert answer.status_code == 200
    if stream:
        chunks = chunks_of(answer)
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "hello"
        notice = chunks[-1]["loopwright"]
    else:
        assert answer.json()["choices"][0]["message"]["content"] == "hello"
        notice = answer.json()["loopwright"]
    assert notice["recorded"] is False
    assert "unmatched" in notice["detail"]
    assert app.records() == []
    assert app.registry.in_flight() == {BASE.version: 0}
    now = REGISTRY.get_sample_value("loopwright_responses_not_recorded_total", {"reason": "too_large"})
    assert now == (not_recorded or 0) + 1
    await app.http.aclose()
    await asyncio.to_thread(app.engine.stop, 5)


async def test_answer_whose_record_was_lost_says_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", 1)
    app = App(publisher=SpoolResponsePublisher(spool, Readiness()))
    app.engine.start()
    answer = await app.chat()
    assert answer.status_code == 200
    assert answer.json()["loopwright"]["recorded"] is False
    assert "the spool is full" in answer.json()["loopwright"]["detail"]
    await app.http.aclose()
    await asyncio.to_thread(app.engine.stop, 5)
    spool.close()


async def test_recorded_answer_has_no_notice(app: App) -> None:
    assert "loopwright" not in (await app.chat()).json()


async def test_oversized_headers_are_431(app: App) -> None:
    answer = await app.http.post(CHAT, json=BODY, headers={"traceparent": "x" * 17_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")
    assert app.records() == []


async def test_long_error_of_the_engine_is_recorded_shortened() -> None:
    request = GenerationRequest("chatcmpl-1", BASE.version, (Message(role="user", content="hi"),), 8)
    details = RequestDetails(LINE, None, {}, datetime(2026, 1, 1, tzinfo=UTC), "")
    result = GenerationResult("failed", Usage(), error="e" * 5000)
    record = response_record(request, result, details, latency_ms=1, first_token_ms=None)
    assert ChatResponse.from_json(record.value).error == "e" * 2048


async def test_answer_stops_before_a_stop_string(app: App) -> None:
    answer = (await app.chat(stop=["l"])).json()
    assert answer["choices"][0]["message"]["content"] == "he"
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_both_names_of_the_token_limit_work(app: App, name: str) -> None:
    answer = (await app.chat(**{name: 2})).json()
    assert answer["choices"][0]["message"]["content"] == "he"
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_unknown_model_is_404_with_openais_error(app: App) -> None:
    answer = await app.chat(model="gpt-4o")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == (
        "model_not_found",
        "invalid_request_error",
        "model",
    )
    assert LINE in error["message"]


async def test_too_long_conversation_is_400_and_releases_its_version(app: App) -> None:
    answer = await app.chat(messages=[{"role": "user", "content": "x" * 100}])
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert app.registry.in_flight() == {BASE.version: 0}


@pytest.mark.parametrize(
    "invalid",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"n": 9},
        {"n": 0},
        {"temperature": -1},
        {"temperature": 3},
        {"temperature": "0.5"},
        {"temperature": True},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": "16"},
        {"max_tokens": True},
        {"stream": "yes"},
        {"stop": ["a", "b", "c", "d", "e"]},
        {"stop": ""},
        {"stop": "x" * 257},
        {"seed": 2**64},
        {"metadata": {str(n): "x" for n in range(17)}},
        {"metadata": {"a": {"deep": "er"}}},
        {"user": "x" * 257},
        {"user": "ann\tb"},
        {"safety_identifier": "ann\n"},
    ],
)
async def test_field_out_of_bounds_is_400_with_openais_error(app: App, invalid: dict[str, Any]) -> None:
    answer = await app.chat(**invalid)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert app.records() == []


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
async def test_hostile_body_is_400(app: App, body: bytes) -> None:
    answer = await app.http.post(CHAT, content=body, headers=JSON)
    assert answer.status_code == 400
    assert "message" in answer.json()["error"]


async def test_too_large_body_is_413_declared_or_not(app: App) -> None:
    async def drip() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 65_536 + 1):
            yield b" " * 65_536

    for content in (b" " * (MAX_BODY_BYTES + 1), drip()):
        answer = await app.http.post(CHAT, content=content, headers=JSON)
        assert answer.status_code == 413
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_full_queue_is_429_with_retry_after(app: App) -> None:
    app.engine.resume.clear()
    running = asyncio.create_task(app.chat())
    assert await asyncio.to_thread(app.engine.busy.wait, 5)
    waiting = asyncio.create_task(app.chat())
    refused = await chat_until(app, status=429)
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "queue_full"
    app.engine.resume.set()
    assert {(await running).status_code, (await waiting).status_code} == {200}
    assert app.registry.in_flight() == {BASE.version: 0}


async def chat_until(app: App, status: int) -> httpx.Response:
    """Send chats until one is answered with `status`; the queue accepts at most one of them."""
    async with asyncio.timeout(10):
        while True:
            chat = asyncio.create_task(app.chat())
            done, _ = await asyncio.wait({chat}, timeout=0.2)
            if done and chat.result().status_code == status:
                return chat.result()


async def test_failed_generation_is_500_and_recorded_as_failed(app: App) -> None:
    app.engine.failure = RuntimeError("out of memory")
    for stream in (False, True):
        answer = await app.chat(stream=stream)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "generation_failed"
    assert [record.status for record in app.records()] == ["failed", "failed"]
    assert "out of memory" in (app.records()[0].error or "")
    assert "out of memory" not in answer.text, "the reason is the operator's"
    app.engine.failure = None
    assert (await app.chat()).status_code == 200


async def test_strict_delivery_without_kafka_is_503(app: App) -> None:
    app.publisher.failure = BrokerUnavailable("Kafka is unavailable")
    answer = await app.chat()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "broker_unavailable"
    assert app.records() == []


async def test_strict_delivery_without_kafka_ends_a_stream_as_failed(app: App) -> None:
    app.publisher.failure = BrokerUnavailable("Kafka is unavailable")
    text = (await app.chat(stream=True)).text
    assert "[DONE]" not in text
    assert '"finish_reason":"stop"' not in text
    assert "broker_unavailable" in text


async def test_chat_before_the_service_is_ready_is_503(app: App) -> None:
    app.readiness.set("model", ok=False, detail="loading")
    answer = await app.chat()
    assert answer.status_code == 503
    assert "model: loading" in answer.json()["error"]["message"]
    assert (await app.http.get("/readyz")).status_code == 503
    assert (await app.http.get("/livez")).status_code == 200


async def test_models_are_the_line_and_the_loaded_versions(app: App) -> None:
    app.refusals = (Refusal("assistant@v1-00000000", 4, "bad_artifact", "altered"),)
    models = (await app.http.get("/v1/models")).json()
    assert [model["id"] for model in models["data"]] == [LINE, BASE.version]
    assert models["data"][0]["loopwright"]["stable"] == BASE.version
    assert models["data"][0]["loopwright"]["refused"][0]["message"] == "altered"
    assert (await app.http.get(f"/v1/models/{BASE.version}")).json()["loopwright"]["role"] == "stable"
    missing = await app.http.get("/v1/models/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_metrics_count_chats_by_version(app: App) -> None:
    await app.chat()
    text = (await app.http.get("/metrics")).text
    assert f'loopwright_chat_requests_total{{status="completed",version="{BASE.version}"}}' in text
