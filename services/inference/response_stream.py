"""One chat between the door and the engine: pieces come across threads, the record is kept, then the answer
may end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from services.inference.core.generation_request import GenerationRequest, GenerationResult, Piece
from services.inference.response_publisher import ResponsePublisher
from shared.cloudevents import sealed
from shared.errors import LoopwrightError
from shared.events import MAX_TEXT, ChatResponse, Choice, Message, Usage
from shared.records import Output
from shared.telemetry import CHAT_REQUESTS, CHAT_SECONDS, CHAT_TOKENS
from shared.topics import CHAT_RESPONSES

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RequestDetails:
    """What the record needs of the request."""

    line: str
    messages: tuple[Message, ...]
    user_id: str | None
    metadata: dict[str, str]
    created_at: datetime
    traceparent: str


@dataclass(frozen=True, slots=True)
class ResponseEnd:
    """The ask has ended and its record is kept; `error` says why the answer must not end well."""

    end: GenerationResult
    error: LoopwrightError | None


class ResponseStream:
    """Made in the event loop, fed from the engine's thread. `on_piece` and `on_end` are the ask's."""

    def __init__(
        self, said: RequestDetails, recorder: ResponsePublisher, release: Callable[[str], None]
    ) -> None:
        self._said = said
        self._recorder = recorder
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Piece | ResponseEnd] = asyncio.Queue()

    async def next(self) -> Piece | ResponseEnd:
        """Pieces, then one `Settled`."""
        return await self._events.get()

    def on_piece(self, piece: Piece) -> None:
        self._post(piece)

    def on_end(self, ask: GenerationRequest, end: GenerationResult) -> None:
        """Exactly once per admitted request: unpins its version, keeps its record, then tells the door."""
        self._release(ask.version)
        seconds = time.monotonic() - ask.admitted_at
        CHAT_REQUESTS.labels(ask.version, end.status).inc()
        CHAT_SECONDS.labels(ask.version).observe(seconds)
        CHAT_TOKENS.labels(ask.version).inc(ask.completion_tokens())
        output = response_record(ask, end, self._said, seconds)
        self._recorder.keep(output, lambda error: self._post(ResponseEnd(end, error)))

    def _post(self, event: Piece | ResponseEnd) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            log.debug(
                "nobody_listens", event=type(event).__name__
            )  # the server stopped before the engine did


def response_record(
    ask: GenerationRequest, end: GenerationResult, said: RequestDetails, seconds: float
) -> Output:
    """The `chat.responses` record of an ended ask, under the response's own id however often it is sent."""
    first = ask.first_token_at
    record = ChatResponse(
        schema_version=1,
        line=said.line,
        response_id=ask.response_id,
        version=ask.version,
        messages=said.messages,
        choices=tuple(
            Choice(index=row.index, text=row.text[:MAX_TEXT], finish_reason=row.finish_reason)
            for row in ask.rows
        ),
        status=end.status,
        error=end.error,
        user_id=said.user_id,
        metadata=said.metadata,
        usage=Usage(prompt_tokens=len(ask.prompt), completion_tokens=ask.completion_tokens()),
        latency_ms=seconds * 1000,
        first_token_ms=None if first is None else (first - ask.admitted_at) * 1000,
        created_at=said.created_at,
    )
    return sealed(
        CHAT_RESPONSES,
        ask.response_id,
        record,
        source="inference",
        ce_id=ask.response_id,
        at=said.created_at,
        traceparent=said.traceparent,
    )
