"""Handler of `POST /v1/chat/completions`: admits a chat, submits it to the engine, answers it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send
from uuid6 import uuid7

from services.inference.api.error_schemas import GenerationFailed, error_body
from services.inference.api.request_schemas import ChatRequest
from services.inference.api.response_schemas import (
    DONE,
    KEEP_ALIVE,
    ChunkEncoder,
    completion_object,
    server_sent_event,
    usage_object,
)
from services.inference.core.generation_request import GenerationRequest, Piece
from services.inference.core.openwebui_headers import OpenWebuiIds, openwebui_ids
from services.inference.engine.port import Generation, InferenceEngine
from services.inference.response_publisher import ResponsePublisher
from services.inference.response_stream import RequestDetails, ResponseEnd, ResponseStream
from services.inference.settings import InferenceSettings
from services.inference.version_registry import VersionRegistry
from shared.cloudevents import valid_traceparent
from shared.errors import LoopwrightError, NotYet
from shared.events import from_ms
from shared.ports import Clock
from shared.pseudonym import Pseudonymiser
from shared.telemetry import Readiness

T = TypeVar("T")
KEEP_ALIVE_S: Final = 3.0
"""Longest time without a byte in a stream. Proxies close connections that are silent for longer, some after 5 s."""
RECORDING_CHECKS: Final = frozenset({"spool", "spool_sender"})
"""Checks of `/readyz` that stop no chat: they are about records that wait on disk."""
STREAM_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Headers that keep caches and nginx from collecting a stream before they pass it on."""
CLIENT_CLOSED_REQUEST = 499
"""nginx's status code for a client that disconnected. It only shows up in logs."""


class ChatHandler:
    """Handler of chats. Every admitted chat ends in exactly one response record, unless that would be too large.

    Args:
        settings: The service's settings.
        registry: Pins each chat to a version.
        engine: Generates the answers.
        publisher: Publishes the response records.
        readiness: Chats are refused while the service is not ready.
        pseudonyms: Replaces user ids.
        clock: Dates the responses.

    """

    def __init__(
        self,
        *,
        settings: InferenceSettings,
        registry: VersionRegistry,
        engine: InferenceEngine,
        publisher: ResponsePublisher,
        readiness: Readiness,
        pseudonyms: Pseudonymiser,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._engine = engine
        self._publisher = publisher
        self._readiness = readiness
        self._pseudonyms = pseudonyms
        self._clock = clock

    async def handle(self, chat: ChatRequest, http_request: Request) -> Response:
        """Return the answer, streamed or whole.

        Raises:
            LoopwrightError: if the chat is refused, or fails before its first byte.

        """
        ids = openwebui_ids(http_request.headers, streamed=bool(chat.stream))
        stream, generation = await self._submit(chat, ids, http_request.headers.get("traceparent"))
        try:
            created = self._clock.now_ms() // 1000
            if chat.stream:
                # An error within the first seconds still gets its HTTP status.
                first = await _unless_disconnected(_next_event(stream), http_request)
                if first is None:
                    return _cancelled_response(generation)
                if isinstance(first, ResponseEnd):
                    _raise_if_failed(first)
                chunks = ChunkEncoder(
                    response_id=stream.request.response_id,
                    created=created,
                    version=stream.request.version,
                    with_usage=chat.wants_usage(),
                )
                return _ChatStream(_stream_chunks(stream, first, chunks), generation)
            end = await _unless_disconnected(stream.end(), http_request)
            if end is None:
                return _cancelled_response(generation)
            _raise_if_failed(end)
            return JSONResponse(completion_object(stream.request, end.result, created, end.not_recorded))
        except BaseException:
            generation.cancel()  # no effect if it has ended
            raise

    async def _submit(
        self, chat: ChatRequest, ids: OpenWebuiIds, traceparent: str | None
    ) -> tuple[ResponseStream, Generation]:
        chat.require_support(self._engine.supported_options())
        self._require_ready()
        settings = self._settings
        user_id = chat.user_id() or ids.user_id
        user = self._pseudonyms.of(user_id) if user_id else None
        version = self._registry.acquire(chat.model, user)
        try:
            request = GenerationRequest(
                response_id=ids.response_id or f"chatcmpl-{uuid7().hex}",
                version=version,
                messages=tuple(message.to_message() for message in chat.messages),
                max_tokens=min(chat.token_limit() or settings.default_tokens, settings.max_tokens),
                n=chat.n or 1,
                sampling=chat.sampling(),
                stop=chat.stop_strings(),
                options=chat.options(),
            )
            details = RequestDetails(
                line=settings.line,
                user_id=user,
                metadata=dict(chat.metadata or ids.metadata()),
                created_at=from_ms(self._clock.now_ms()),
                traceparent=valid_traceparent(traceparent),
            )
            stream = ResponseStream(request, details, self._publisher, self._registry.release)
            return stream, await self._engine.submit(request, stream)
        except BaseException:
            self._registry.release(version)  # the engine has not accepted the request
            raise

    def _require_ready(self) -> None:
        """Raise `NotYet` while the service cannot answer as it should.

        Before the rollout is known, the base would answer although another version is stable. With a spool, answers go
        on while records cannot be sent.
        """
        _, checks = self._readiness.report()
        failing = [
            f"{name}: {detail}"
            for name, detail in checks.items()
            if name not in RECORDING_CHECKS and not detail.startswith("ok")
        ]
        if failing:
            raise NotYet(
                f"this replica is not ready yet ({'; '.join(failing)}); send the request again in a moment"
            )


class _Silence:
    """No output for `KEEP_ALIVE_S`."""


_SILENCE: Final = _Silence()


async def _next_event(stream: ResponseStream) -> Piece | ResponseEnd | _Silence:
    return await stream.next_event_within(KEEP_ALIVE_S) or _SILENCE


class _ChatStream(StreamingResponse):
    """A streamed answer. Its generation is cancelled if the client disconnects, even before the first byte."""

    def __init__(self, body: AsyncIterator[bytes], generation: Generation) -> None:
        super().__init__(body, media_type="text/event-stream", headers=STREAM_HEADERS)
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()  # no effect if the request has ended


async def _stream_chunks(
    stream: ResponseStream, first: Piece | ResponseEnd | _Silence, chunks: ChunkEncoder
) -> AsyncIterator[bytes]:
    """Yield the answer as server-sent events, and a comment after each silence.

    The first chunk of each choice has its role. Finish reasons follow after the record was published. A stream that
    fails ends with an error object and without `[DONE]`.
    """
    event = first
    while isinstance(event, _Silence):
        yield KEEP_ALIVE
        event = await _next_event(stream)
    if not (isinstance(event, ResponseEnd) and event.failed):
        for index in range(stream.request.n):
            yield chunks.role(index)
    while not isinstance(event, ResponseEnd):
        if isinstance(event, _Silence):
            yield KEEP_ALIVE
        elif chunk := chunks.piece(event):
            yield chunk
        event = await _next_event(stream)
    try:
        _raise_if_failed(event)
    except LoopwrightError as error:
        yield server_sent_event(error_body(error)[1])
        return
    for choice in event.result.choices:
        yield chunks.finish(choice.index, choice.finish_reason, event.not_recorded)
    yield chunks.usage(usage_object(event.result.usage)) + DONE


def _raise_if_failed(end: ResponseEnd) -> None:
    if end.error is not None:
        raise end.error
    if end.result.status != "completed":
        # The reason is in the record and in the log: it may name files, hosts or sizes of this deployment.
        raise GenerationFailed(
            "the model could not generate an answer; send the request again. If it fails again, the operator finds "
            "the reason in the log of inference"
        )


def _cancelled_response(generation: Generation) -> Response:
    generation.cancel()
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _unless_disconnected(work: Coroutine[Any, Any, T], request: Request) -> T | None:
    """Return the result of `work`, or None if the client disconnects first."""
    result = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({result, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        return result.result() if result.done() else None
    finally:
        result.cancel()
        disconnected.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
