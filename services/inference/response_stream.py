"""One chat on its way from the engine to the client, and its record on the way to `chat.responses`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from services.inference.core.generation_request import (
    ChoiceResult,
    FunctionCall,
    GenerationRequest,
    GenerationResult,
    Piece,
)
from services.inference.response_publisher import ResponsePublisher
from shared.cloudevents import cloudevent
from shared.errors import LoopwrightError
from shared.events import (
    MAX_CONTENT,
    MAX_TOOL_CALLS,
    MAX_TOOL_NAME,
    ChatResponse,
    Choice,
    ToolCall,
    ToolFunction,
)
from shared.limits import MAX_RESPONSE_BYTES
from shared.records import Output
from shared.telemetry import CHAT_REQUESTS, CHAT_SECONDS, CHAT_TOKENS, RESPONSES_NOT_RECORDED
from shared.topics import CHAT_RESPONSES

TOO_LARGE = (
    f"the response takes {{}} bytes as a record; the limit is {MAX_RESPONSE_BYTES}. Feedback on it will be "
    "`unmatched`. Shorten the conversation to have its answers recorded"
)
NOT_RECORDABLE = "the response is not a valid record. Feedback on it will be `unmatched`"
MAX_ERROR = 2048
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RequestDetails:
    """Parts of the response record that the engine does not need. `user_id` is the pseudonym."""

    line: str
    user_id: str | None
    metadata: dict[str, str]
    created_at: datetime
    traceparent: str


@dataclass(frozen=True, slots=True)
class ResponseEnd:
    """The result, after its record was published. `error` is why the request must fail although it completed.

    `not_recorded` is why there is no record, for the caller; the answer itself is complete.
    """

    result: GenerationResult
    error: LoopwrightError | None
    not_recorded: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the request ended without an answer."""
        return self.error is not None or self.result.status != "completed"


class ResponseStream:
    """Bridge from the engine's thread to the event loop. It is the request's `GenerationListener`.

    Create it in the event loop, at admission.

    Args:
        request: The request that the engine gets.
        details: Other parts of the response record.
        publisher: Publishes the record.
        release: Called with the version when the request has ended.

    """

    def __init__(
        self,
        request: GenerationRequest,
        details: RequestDetails,
        publisher: ResponsePublisher,
        release: Callable[[str], None],
    ) -> None:
        self.request = request
        self._details = details
        self._publisher = publisher
        self._release = release
        self._admitted_at = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Piece | ResponseEnd] = asyncio.Queue()

    async def next_event(self) -> Piece | ResponseEnd:
        """Return the next piece, or the end after the last one."""
        return await self._events.get()

    async def next_event_within(self, timeout_s: float) -> Piece | ResponseEnd | None:
        """Return the next event, or None if there is none for `timeout_s` seconds. No event is lost."""
        if self._events.empty():
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._events.get()
            except TimeoutError:
                return None
        return self._events.get_nowait()

    async def end(self) -> ResponseEnd:
        """Skip the remaining pieces and return the end."""
        while True:
            event = await self.next_event()
            if isinstance(event, ResponseEnd):
                return event

    def on_piece(self, piece: Piece) -> None:
        """Pass a piece to the event loop."""
        self._send(piece)

    def on_result(self, result: GenerationResult) -> None:
        """Release the version and publish the record, then let the answer end.

        A response that no batch can hold is answered but not recorded: recording must not make a chat fail.
        """
        version = self.request.version
        seconds = time.monotonic() - self._admitted_at
        self._release(version)
        CHAT_REQUESTS.labels(version, result.status).inc()
        CHAT_SECONDS.labels(version).observe(seconds)
        CHAT_TOKENS.labels(version).inc(result.usage.completion_tokens)
        if result.status == "failed":
            log.error("generation_failed", response_id=self.request.response_id, reason=result.error)
        first = result.first_token_at
        try:
            record = response_record(
                self.request,
                result,
                self._details,
                latency_ms=seconds * 1000,
                first_token_ms=None if first is None else (first - self._admitted_at) * 1000,
            )
        except (
            ValueError
        ):  # whatever an engine returns, its thread must go on, and the client gets its answer
            log.exception("response_not_recordable", response_id=self.request.response_id)
            self._end_unrecorded(result, "invalid", NOT_RECORDABLE)
            return
        size = len(record.value or b"")
        if size > MAX_RESPONSE_BYTES:
            log.warning("response_not_recorded", response_id=self.request.response_id, bytes=size)
            self._end_unrecorded(result, "too_large", TOO_LARGE.format(size))
            return
        self._publisher.publish(
            record, lambda error, not_recorded=None: self._send(ResponseEnd(result, error, not_recorded))
        )

    def _end_unrecorded(self, result: GenerationResult, reason: str, explanation: str) -> None:
        RESPONSES_NOT_RECORDED.labels(reason).inc()
        self._send(ResponseEnd(result, None, explanation))

    def _send(self, event: Piece | ResponseEnd) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the event loop was closed before the engine was stopped
            log.debug("event_loop_closed", event_type=type(event).__name__)


def response_record(
    request: GenerationRequest,
    result: GenerationResult,
    details: RequestDetails,
    *,
    latency_ms: float,
    first_token_ms: float | None,
) -> Output:
    """Return the `chat.responses` record of a request that has ended.

    Its id is the response's own, so readers recognise a record that was sent twice.
    """
    record = ChatResponse(
        schema_version=1,
        line=details.line,
        response_id=request.response_id,
        version=request.version,
        messages=request.messages,
        choices=tuple(map(_recorded_choice, result.choices)),
        status=result.status,
        error=result.error[:MAX_ERROR] if result.error is not None else None,
        user_id=details.user_id,
        metadata=details.metadata,
        usage=result.usage,
        latency_ms=latency_ms,
        first_token_ms=first_token_ms,
        created_at=details.created_at,
    )
    return cloudevent(
        CHAT_RESPONSES,
        request.response_id,
        record,
        source="inference",
        ce_id=request.response_id,
        at=details.created_at,
        traceparent=details.traceparent,
    )


def _recorded_choice(choice: ChoiceResult) -> Choice:
    """Return a choice as the record holds it: within the limits of a record, whatever the model wrote."""
    calls = tuple(map(_recorded_call, choice.tool_calls[:MAX_TOOL_CALLS]))
    return Choice(
        index=choice.index,
        text=choice.text[:MAX_CONTENT],
        finish_reason=choice.finish_reason,
        tool_calls=calls or None,
    )


def _recorded_call(call: FunctionCall) -> ToolCall:
    function = ToolFunction(name=call.name[:MAX_TOOL_NAME], arguments=call.arguments[:MAX_CONTENT])
    return ToolCall(id=call.id[:MAX_TOOL_NAME], type="function", function=function)
