"""OpenAI's client: record the chat completions that an app gets from any model (`loopwright[openai]`).

    from loopwright import BackgroundLoopwright
    from loopwright.integrations.openai import wrap

    loop = BackgroundLoopwright(spool="loopwright.db")
    chat = wrap(OpenAI(), loop)
    answer = chat.chat.completions.create(model="...", messages=[...], user="u-17")
    loop.thumbs_up(answer.id, "u-17")

It works below the client's methods, in its HTTP client, so `create`, `parse`, `stream`, raw responses, tools and
several choices are all covered. A stream is recorded when it ends, also if the app stops reading it. The answer itself
is neither changed nor delayed, and nothing that goes wrong here is raised into the app. Answers of Loopwright's own
inference are not recorded twice.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any, Protocol, TypeVar

try:
    from openai import AsyncOpenAI, OpenAI
except ImportError as error:
    raise ImportError(
        "loopwright.integrations.openai needs openai: pip install 'loopwright[openai]'"
    ) from error

from loopwright.completion import AnswerObserver, CompletionReader

ROUTE = "/chat/completions"
Client = TypeVar("Client", OpenAI, AsyncOpenAI)
log = logging.getLogger("loopwright.integrations")


class Recorder(Protocol):
    """What records the responses; `BackgroundLoopwright` is one."""

    def record(self, response: Mapping[str, Any]) -> None:
        """Record a body of `POST /v1/responses`. Must not block."""


def wrap(
    client: Client,
    loop: Recorder,
    *,
    user_id: str | Callable[[Mapping[str, Any]], str | None] | None = None,
    metadata: Mapping[str, str] | None = None,
    line: str | None = None,
) -> Client:
    """Return a client that records the chat completions it gets. The given client is not changed.

    Args:
        client: The client, synchronous or not, also one for Azure.
        loop: Records the responses.
        user_id: Your id of the user, or a function of the request's body. The default is the request's
            `safety_identifier`, else its `user`.
        metadata: Labels of all responses, in addition to the request's `metadata`.
        line: Line of the responses; the default is the service's own.

    """
    recording = _Recording(loop, user_id, metadata, line)
    inner: Any = client._client  # it has no public name
    # A copy shares the connections of the original. That one must live as long, because its end closes them.
    http: Any = copy(inner)
    http.send = (
        _async_send(inner, recording) if inspect.iscoroutinefunction(inner.send) else _send(inner, recording)
    )
    return client.copy(http_client=http)


class _Recording:
    """Makes an observer for each answer to a chat."""

    def __init__(
        self,
        loop: Recorder,
        user_id: str | Callable[[Mapping[str, Any]], str | None] | None,
        metadata: Mapping[str, str] | None,
        line: str | None,
    ) -> None:
        self._loop = loop
        self._user_id = user_id
        self._labels = {"metadata": dict(metadata or {}), "line": line}

    def observe(self, request: Any, response: Any, started: float) -> AnswerObserver | None:
        """Return the observer of a response, or None if there is nothing to record."""
        try:
            if request.method != "POST" or not request.url.path.endswith(ROUTE) or not response.is_success:
                return None
            body = json.loads(request.content)
            if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
                return None
            user_id = self._user_id(body) if callable(self._user_id) else self._user_id
            return AnswerObserver(
                CompletionReader(body, started, {**self._labels, "user_id": user_id}),
                is_stream="text/event-stream" in response.headers.get("content-type", ""),
                report=self._loop.record,
                failed=_log,
                clock=time.monotonic,
            )
        except Exception as error:  # noqa: BLE001 - the app must get its answer
            _log(error)
            return None


def _log(error: Exception) -> None:
    log.warning("an answer was not recorded: %r", error)


def _send(inner: Any, recording: _Recording) -> Callable[..., Any]:
    """Return a function that sends with the HTTP client `inner`, and shows the answers to an observer."""

    def send(request: Any, **options: Any) -> Any:
        started = time.monotonic()
        response = inner.send(request, **options)
        observer = recording.observe(request, response, started)
        if observer is not None and response.is_closed:
            observer.whole(response.content)
        elif observer is not None:
            _ObservedBody(response, observer).attach()
        return response

    return send


def _async_send(inner: Any, recording: _Recording) -> Callable[..., Awaitable[Any]]:
    async def send(request: Any, **options: Any) -> Any:
        started = time.monotonic()
        response = await inner.send(request, **options)
        observer = recording.observe(request, response, started)
        if observer is not None and response.is_closed:
            observer.whole(response.content)
        elif observer is not None:
            _AsyncObservedBody(response, observer).attach()
        return response

    return send


@contextmanager
def _ends(observer: AnswerObserver) -> Iterator[None]:
    """Report how reading the body ends."""
    try:
        yield
    except (GeneratorExit, asyncio.CancelledError):
        observer.end("cancelled")
        raise
    except BaseException as error:
        observer.end("failed", error)
        raise
    observer.end("completed")


class _ObservedBody:
    """Shows the body of a response to an observer while the app reads it."""

    def __init__(self, response: Any, observer: AnswerObserver) -> None:
        self._response = response
        self._observer = observer
        self._read, self._close = response.iter_bytes, response.close
        self._reading = False
        """A response that was read to its end closes itself."""

    def attach(self) -> None:
        """Take the place of two methods of the response, which all others that read or close it use."""
        self._response.iter_bytes = self.iter_bytes
        self._response.close = self.close

    def iter_bytes(self, chunk_size: int | None = None) -> Iterator[bytes]:
        self._reading = True
        with _ends(self._observer):
            for content in self._read(chunk_size):
                self._observer.data(content)
                self._reading = False
                yield content
                self._reading = True

    def close(self) -> None:
        if not self._reading:
            self._observer.end("cancelled")
        self._close()


class _AsyncObservedBody:
    """The same for asynchronous clients."""

    def __init__(self, response: Any, observer: AnswerObserver) -> None:
        self._response = response
        self._observer = observer
        self._read, self._close = response.aiter_bytes, response.aclose
        self._reading = False

    def attach(self) -> None:
        self._response.aiter_bytes = self.aiter_bytes
        self._response.aclose = self.aclose

    async def aiter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        self._reading = True
        with _ends(self._observer):
            async for content in self._read(chunk_size):
                self._observer.data(content)
                self._reading = False
                yield content
                self._reading = True

    async def aclose(self) -> None:
        if not self._reading:
            self._observer.end("cancelled")
        await self._close()
