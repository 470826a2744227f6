"""One request on its way through a vLLM server: routing, retries, pieces, result."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import replace
from typing import Any, Final

import structlog

from services.inference.core.generation_request import (
    ChoiceResult,
    ContextExceeded,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    InvalidParameter,
    Piece,
    Status,
    TokenLogprob,
    ToolCallDelta,
    join_tool_calls,
)
from services.inference.engine.port import GenerationListener
from services.inference.engine.refusals import context_exceeded, shutting_down
from services.inference.engine.vllm.chat_api import tokenize_body
from services.inference.engine.vllm.completions_api import Call, ChoiceDelta
from services.inference.engine.vllm.replica import Replica
from services.inference.engine.vllm.replica_set import ReplicaSet
from services.inference.engine.vllm.server import ServerRefused, ServerUnreachable
from shared.errors import LoopwrightError, Overloaded, Rejected, Retryable
from shared.events import MAX_CONTENT, Usage

MAX_ATTEMPTS: Final = 3
"""Servers that a request is sent to, one after the other, as long as none has begun to answer."""
FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "repetition": "stop",
}
MAX_ACCEPTANCES: Final = 2
"""Servers that may accept a request and then break down. Perhaps the request is what breaks them."""
DRAIN_S = 1.0
log = structlog.get_logger(__name__)


class _Choice:
    """Output of one choice so far."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.tool_calls: list[ToolCallDelta] = []
        self.logprobs: list[TokenLogprob] = []
        self.length = 0
        self.tokens = 0
        self.finish_reason: FinishReason | None = None


class _Failed(Exception):
    """The request ends as failed, for this reason."""


class VllmGeneration:
    """A request of the vLLM engine. Except for `cancel`, it is used in the engine's event loop only.

    Nothing reaches the listener before `release`: until then the caller of `submit` may still get an error instead.

    Args:
        request: The request.
        call: The HTTP call that generates the answer.
        is_base: Whether the base answers it. Each server has its own name for the base.
        max_context: Limit of prompt and answer together, in tokens.
        listener: Receives pieces and the result.
        replicas: Where it is sent.
        on_started: Called at the first token.
        on_end: Called once, when the request needs the engine no longer.

    """

    def __init__(
        self,
        request: GenerationRequest,
        call: Call,
        *,
        is_base: bool,
        max_context: int,
        listener: GenerationListener,
        replicas: ReplicaSet,
        loop: asyncio.AbstractEventLoop,
        on_started: Callable[[VllmGeneration], None],
        on_end: Callable[[VllmGeneration], None],
    ) -> None:
        self.request = request
        self._call = call
        self._is_base = is_base
        self._max_context = max_context
        self._prompt_tokens = call.prompt_tokens or 0
        self._listener = listener
        self._replicas = replicas
        self._loop = loop
        self._on_started = on_started
        self._on_end = on_end
        self._choices = [_Choice() for _ in range(request.n)]
        self._first_token_at: float | None = None
        self.accepted: Future[None] = Future()
        """Done when a server has accepted the request; fails if it is refused."""
        self._released = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._end_as: tuple[Status, str | None] = ("cancelled", None)
        self._ended = False
        self._unsent: tuple[Status, str | None] | None = None
        """How the request ended before the listener could be called."""
        self._acceptances = 0

    # --- from other threads ---

    def cancel(self) -> None:
        """Close the connection, which makes vLLM stop. See `Generation.cancel`."""
        try:
            self._loop.call_soon_threadsafe(self.stop, "cancelled", None)
        except RuntimeError:  # the engine has been stopped, so the request has ended
            log.debug("engine_stopped_already", response_id=self.request.response_id)

    def release(self) -> None:
        """Let the listener be called: `submit` returns. Raises RuntimeError if the engine has been stopped."""
        self._loop.call_soon_threadsafe(self._release)

    # --- in the event loop ---

    @property
    def started(self) -> bool:
        """Whether there is a token."""
        return self._first_token_at is not None

    def start(self) -> None:
        """Start. `accepted` tells whether a server has accepted the request."""
        self._task = asyncio.create_task(self._run())

    def _release(self) -> None:
        self._released.set()
        if self._unsent is not None:
            self._end(*self._unsent)

    def stop(self, status: Status, error: str | None) -> None:
        """End soon with this status. No effect on a request that has ended."""
        if self._task is not None and not self._task.done():
            self._end_as = (status, error)
            self._task.cancel()

    async def wait(self) -> None:
        """Wait until the request has ended."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            await self._attempt_all()
            self._end("completed", None)
        except asyncio.CancelledError:
            self._refuse(shutting_down())
            self._end(*self._end_as)
        except LoopwrightError as error:
            self._refuse(error)
            self._end("failed", str(error))
        except _Failed as error:
            self._end("failed", str(error))
        except Exception as error:
            log.exception("generation_failed", response_id=self.request.response_id)
            self._refuse(Retryable(f"the request failed: {type(error).__name__}: {error}"))
            self._end("failed", f"{type(error).__name__}: {error}")
        finally:
            self._on_end(self)

    async def _attempt_all(self) -> None:
        """Send the request to one server after the other until one answers it.

        Once a token has arrived there is no other attempt: another answer could not continue it.
        """
        failed: list[Replica] = []
        while True:
            replica = await self._replicas.acquire(None if self._is_base else self.request.version, failed)
            try:
                await self._attempt(replica)
            except (ServerUnreachable, ServerRefused) as error:
                failure = self._judge(replica, error)
                failed.append(replica)
                log.warning("vllm_attempt_failed", response_id=self.request.response_id, error=str(error))
                if self.started:
                    raise _Failed("the vLLM server broke off before the answer was complete") from error
                is_last = len(failed) >= MAX_ATTEMPTS or self._acceptances >= MAX_ACCEPTANCES
                if is_last or isinstance(failure, Rejected):
                    raise failure from error
            else:
                return
            finally:
                self._replicas.release(replica)

    async def _attempt(self, replica: Replica) -> None:
        call = self._call
        if self._is_base:
            call = replace(call, body=call.body | {"model": replica.base_model})
        if call.prompt_tokens is None:
            call = await self._within_context(replica, call)
        async with replica.server.stream(call.path, call.body) as events:
            self._acceptances += 1
            self._accept()
            await self._released.wait()
            async for event in events:
                self._receive_event(event)
                if all(choice.finish_reason is not None for choice in self._choices):
                    break
            else:
                raise ServerUnreachable(
                    f"the vLLM server {replica.url} ended the answer before it was complete"
                )
            self._end("completed", None)
            # The connection can be used again once the stream's last bytes have been read.
            with contextlib.suppress(LoopwrightError, TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    async for _ in events:
                        pass

    async def _within_context(self, replica: Replica, call: Call) -> Call:
        """Return a call whose prompt only the server can count, with the tokens that its context leaves."""
        self._prompt_tokens = await replica.server.count_tokens(tokenize_body(call))
        remaining = self._max_context - self._prompt_tokens
        if remaining < 1:
            raise context_exceeded(self._prompt_tokens, self._max_context)
        limit = min(call.body["max_completion_tokens"], remaining)
        return replace(call, body=call.body | {"max_completion_tokens": limit})

    def _receive_event(self, event: dict[str, Any]) -> None:
        try:
            deltas = self._call.parse_event(event)
            for delta in deltas:
                self._receive(delta)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise _Failed(f"the vLLM server sent an event of an unknown form: {error!r}") from error

    def _judge(self, replica: Replica, error: ServerUnreachable | ServerRefused) -> LoopwrightError:
        """Return the error that the client gets if there is no other attempt, and take note of a bad server."""
        if isinstance(error, ServerUnreachable):
            replica.suspect(str(error))
            return Retryable("the vLLM server broke off; send the request again")
        message = f"the vLLM server answers: {error}"
        if error.status in {400, 413, 422}:
            if "context length" in message or "max_model_len" in message:
                return ContextExceeded(message)
            return Rejected(message) if error.param is None else InvalidParameter(message, error.param)
        if error.status in {429, 503}:
            # A full queue, or a dead engine: the next check tells.
            replica.wake.set()
            return Overloaded(f"{message}; send the request again in a moment")
        # 404: the server was restarted and has forgotten the version. Others: its engine failed.
        replica.suspect(f"the vLLM server {replica.url} answers {error.status}: {error}")
        return Retryable(f"{message}; send the request again")

    def _receive(self, delta: ChoiceDelta) -> None:
        if self._first_token_at is None:
            self._first_token_at = time.monotonic()
            self._on_started(self)
        choice = self._choices[delta.index]
        if choice.finish_reason is not None:
            return
        choice.tokens = choice.tokens + 1 if delta.completion_tokens is None else delta.completion_tokens
        text = delta.text
        if delta.finish_reason is not None:
            if delta.finish_reason not in FINISH_REASONS:
                raise _Failed(f"the vLLM server ended the answer with {delta.finish_reason!r}")
            choice.finish_reason = FINISH_REASONS[delta.finish_reason]
            if choice.finish_reason == "stop" and (choice.tool_calls or delta.tool_calls):
                choice.finish_reason = (
                    "tool_calls"  # after a call that the request demanded, vLLM says `stop`
                )
        choice.length += len(text) + sum(len(call.arguments) for call in delta.tool_calls)
        if choice.length >= MAX_CONTENT:
            text, choice.finish_reason = text[: len(text) - (choice.length - MAX_CONTENT)], "length"
        choice.text.append(text)
        choice.tool_calls.extend(delta.tool_calls)
        choice.logprobs.extend(delta.logprobs)
        if text or choice.finish_reason is not None or delta.tool_calls or delta.logprobs:
            self._listener.on_piece(
                Piece(delta.index, text, choice.finish_reason, delta.tool_calls, delta.logprobs)
            )

    def _accept(self) -> None:
        """Let `submit` return."""
        with contextlib.suppress(InvalidStateError):  # an earlier server, or the caller has given up
            self.accepted.set_result(None)

    def _refuse(self, error: LoopwrightError) -> None:
        """Let `submit` raise the error, if it has not returned."""
        with contextlib.suppress(InvalidStateError):
            self.accepted.set_exception(error)

    def _end(self, status: Status, error: str | None) -> None:
        if self._ended:
            return
        if not self._released.is_set():
            self._unsent = (status, error)
            return
        self._ended = True
        if status == "cancelled" and self.started:
            for index, choice in enumerate(self._choices):
                if choice.finish_reason is None:
                    choice.finish_reason = "cancelled"
                    self._listener.on_piece(Piece(index, "", "cancelled"))
        choices = tuple(
            ChoiceResult(
                index,
                "".join(choice.text),
                choice.finish_reason,
                join_tool_calls(choice.tool_calls),
                tuple(choice.logprobs),
            )
            for index, choice in enumerate(self._choices)
        )
        usage = Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=sum(choice.tokens for choice in self._choices),
        )
        self._listener.on_result(
            GenerationResult(status, usage, choices if self.started else (), error, self._first_token_at)
        )
