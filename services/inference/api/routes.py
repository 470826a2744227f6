"""The door: `POST /v1/chat/completions` and `GET /v1/models`, as OpenAI's clients know them, and the health
routes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send
from uuid6 import uuid7

from services.inference.api import openai_schemas as api
from services.inference.core.generation_request import GenerationRequest, Piece, Sampling
from services.inference.response_publisher import ResponsePublisher
from services.inference.response_stream import RequestDetails, ResponseEnd, ResponseStream
from services.inference.settings import InferenceSettings
from services.inference.version_registry import ServingState, VersionRegistry
from services.inference.version_swap import Refusal
from shared.adapters.http import BodyLimit, add_doorway
from shared.cloudevents import new_traceparent
from shared.errors import LoopwrightError, NotYet, Oversized, UnknownVersion
from shared.events import Message, from_ms
from shared.ports import Clock
from shared.pseudonym import Pseudonymiser
from shared.telemetry import CHAT_REQUESTS, Readiness
from shared.versions import VersionRef

MAX_BODY_BYTES = 524_288
"""Leaves room in a record of a megabyte for the conversation with all its answers."""
T = TypeVar("T")
TRACEPARENT = re.compile(r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")


class Queue(Protocol):
    """What the door needs of the engine."""

    def submit(self, ask: GenerationRequest) -> None: ...


class Words(Protocol):
    """What the door needs of the tokenizer: `prompts.Prompts`."""

    context: int

    @property
    def stops(self) -> tuple[str, ...]: ...

    def tokens(self, turns: Sequence[tuple[str, str]]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class AppDependencies:
    """What `__main__` puts together, and tests otherwise."""

    settings: InferenceSettings
    serving: VersionRegistry
    engine: Queue
    prompts: Words
    recorder: ResponsePublisher
    readiness: Readiness
    pseudonyms: Pseudonymiser
    clock: Clock
    refusals: Callable[[], tuple[Refusal, ...]] = tuple


class ChatBodyLimit(BodyLimit):
    """The bound on bodies, told in OpenAI's shape."""

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await api.error_response(Oversized(f"the body is larger than {self._max} bytes"))(
            scope, receive, send
        )


def create_app(parts: AppDependencies) -> FastAPI:
    """The ASGI application. Connects to nothing."""
    app = FastAPI(title="Loopwright inference", docs_url=None, redoc_url=None)
    add_doorway(app, parts.readiness, MAX_BODY_BYTES)
    app.add_middleware(ChatBodyLimit, max_bytes=MAX_BODY_BYTES)
    door = ChatHandler(parts)

    @app.exception_handler(LoopwrightError)
    async def known(_: Request, error: LoopwrightError) -> JSONResponse:
        CHAT_REQUESTS.labels("none", "refused").inc()
        return api.error_response(error)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        asked = api.read_request(await request.body())
        return await door.answer(asked, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": models_of(parts.serving.snapshot(), parts.serving.line, parts.refusals()),
        }

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        listed = models_of(parts.serving.snapshot(), parts.serving.line, parts.refusals())
        for found in listed:
            if found["id"] == model:
                return found
        raise UnknownVersion(
            f"the model {model!r} is not served here; served are: {', '.join(m['id'] for m in listed)}"
        )

    return app


class ChatHandler:
    """Admits chats and tells their answers."""

    def __init__(self, parts: AppDependencies) -> None:
        self._parts = parts

    async def answer(self, asked: api.ChatRequest, request: Request) -> Response:
        """Raises `LoopwrightError` for what ends before its first byte."""
        ask, exchange = await self._admit(asked, request.headers.get("traceparent", ""))
        try:
            first = await _unless_gone(exchange.next(), request)
            if first is None:
                return _nobody(ask)
            if isinstance(first, ResponseEnd):
                _raise_if_bad(first)
            created = self._parts.clock.now_ms() // 1000
            if asked.stream:
                chunks = api.ChunkEncoder(
                    response_id=ask.response_id,
                    created=created,
                    version=ask.version,
                    with_usage=asked.with_usage(),
                )
                return StreamingResponse(
                    _stream(ask, exchange, first, chunks), media_type="text/event-stream"
                )
            settled = (
                first if isinstance(first, ResponseEnd) else await _unless_gone(_settled(exchange), request)
            )
            if settled is None:
                return _nobody(ask)
            _raise_if_bad(settled)
            return JSONResponse(_whole(ask, created))
        except BaseException:
            ask.cancel()  # no effect where it has ended
            raise

    async def _admit(
        self, asked: api.ChatRequest, traceparent: str
    ) -> tuple[GenerationRequest, ResponseStream]:
        """From here on the request ends in exactly one record."""
        parts, settings = self._parts, self._parts.settings
        self._must_be_ready()
        turns = [(message.role, message.text()) for message in asked.messages]
        prompt = await asyncio.to_thread(parts.prompts.tokens, turns)
        room = parts.prompts.context - len(prompt)
        if room < 1:
            raise api.ContextExceeded(
                f"the conversation has {len(prompt)} tokens, the model takes {parts.prompts.context - 1}; send less"
            )
        user = parts.pseudonyms.of(asked.user) if asked.user else None
        said = RequestDetails(
            line=settings.line,
            messages=tuple(Message(role=m.role, content=m.text()) for m in asked.messages),
            user_id=user,
            metadata=dict(asked.metadata or {}),
            created_at=from_ms(parts.clock.now_ms()),
            traceparent=traceparent if TRACEPARENT.match(traceparent) else new_traceparent(),
        )
        exchange = ResponseStream(said, parts.recorder, parts.serving.release)
        version = parts.serving.admit(asked.model, user)
        ask = GenerationRequest(
            response_id=f"chatcmpl-{uuid7().hex}",
            version=version,
            prompt=prompt,
            max_tokens=min(asked.token_bound() or settings.default_tokens, settings.max_tokens, room),
            on_piece=exchange.on_piece,
            on_end=exchange.on_end,
            n=asked.n or 1,
            sampling=sampling_of(asked),
            stop=asked.stops() + parts.prompts.stops,
        )
        try:
            parts.engine.submit(ask)
        except LoopwrightError:
            parts.serving.release(version)
            raise
        return ask, exchange

    def _must_be_ready(self) -> None:
        """Before the rollout is known, an answer would come from the base while another version is stable."""
        ready, checks = self._parts.readiness.report()
        if not ready:
            missing = "; ".join(
                f"{name}: {what}" for name, what in checks.items() if not what.startswith("ok")
            )
            raise NotYet(f"this replica is not ready yet ({missing}); ask again in a moment")


def sampling_of(asked: api.ChatRequest) -> Sampling:
    return Sampling(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        seed=asked.seed,
    )


async def _settled(exchange: ResponseStream) -> ResponseEnd:
    while True:
        event = await exchange.next()
        if isinstance(event, ResponseEnd):
            return event


async def _stream(
    ask: GenerationRequest, exchange: ResponseStream, first: Piece | ResponseEnd, chunks: api.ChunkEncoder
) -> AsyncIterator[bytes]:
    """Text as it comes; the ends of the choices only when the record is kept."""
    try:
        for index in range(ask.n):
            yield chunks.role(index)
        event = first
        while not isinstance(event, ResponseEnd):
            if event.text:
                yield chunks.text(event.choice, event.text)
            event = await exchange.next()
        try:
            _raise_if_bad(event)
        except LoopwrightError as error:
            yield api.event(api.error_body(error)[1])
            return
        for row in ask.rows:
            yield chunks.end(row.index, row.finish_reason)
        yield chunks.usage(api.usage(len(ask.prompt), ask.completion_tokens())) + api.DONE
    finally:
        ask.cancel()  # the client went away; no effect where it has ended


def _raise_if_bad(settled: ResponseEnd) -> None:
    if settled.error is not None:
        raise settled.error
    if settled.end.status != "completed":
        raise api.GenerationFailed(
            f"no answer was made: {settled.end.error or settled.end.status}; ask again"
        )


def _whole(ask: GenerationRequest, created: int) -> dict[str, Any]:
    return api.completion(
        response_id=ask.response_id,
        created=created,
        version=ask.version,
        choices=[(row.text, row.finish_reason) for row in ask.rows],
        used=api.usage(len(ask.prompt), ask.completion_tokens()),
    )


def _nobody(ask: GenerationRequest) -> Response:
    ask.cancel()
    return Response(status_code=499)


async def _unless_gone(wanted: Coroutine[Any, Any, T], request: Request) -> T | None:
    """The result, or None where the client went away first."""
    work = asyncio.ensure_future(wanted)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def models_of(served: ServingState, line: str, refusals: tuple[Refusal, ...]) -> list[dict[str, Any]]:
    """OpenAI's list, with what Loopwright knows of each under `loopwright`."""
    seq = served.record.seq if served.record else None
    state = {
        "stable": served.stable.version,
        "canary": served.canary.version if served.canary else None,
        "share": served.share,
        "seq": seq,
        "refused": [
            {"version": r.version, "seq": r.seq, "code": r.code, "message": r.message} for r in refusals
        ],
    }
    return [_listed(line, state), *(_listed(ref.version, _role(ref, served)) for ref in served.loaded)]


def _role(ref: VersionRef, served: ServingState) -> dict[str, Any]:
    canary = served.canary is not None and ref.version == served.canary.version
    role = "stable" if ref.version == served.stable.version else "canary" if canary else "base"
    return {"role": role, "kind": ref.kind, "digest": ref.digest}


def _listed(name: str, about: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "loopwright", "loopwright": about}
