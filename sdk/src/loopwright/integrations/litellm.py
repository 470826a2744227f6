"""LiteLLM: a logger that records the answers of chat models (`loopwright[litellm]`).

    import litellm
    from loopwright.integrations.litellm import LoopwrightLogger

    litellm.callbacks = [LoopwrightLogger()]
    answer = litellm.completion(model="...", messages=[...], user="u-17")
    loop.thumbs_up(answer.id, "u-17")

Feedback on an answer uses its `id`, also for streams: all chunks have it. In LiteLLM's proxy, name an instance in
`litellm_settings.callbacks`. Models that Loopwright's inference serves need no logger: it records its own answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

try:
    from litellm.integrations.custom_logger import CustomLogger
except ImportError as error:
    raise ImportError(
        "loopwright.integrations.litellm needs litellm: pip install 'loopwright[litellm]'"
    ) from error

from loopwright.background import BackgroundLoopwright
from loopwright.integrations.recording import never_raise, response_body
from loopwright.wire import without_none

CHAT_CALLS: Final = frozenset({"completion", "acompletion", None})
"""LiteLLM's names of chats. Embeddings, images and others have no answer to record."""


class LoopwrightLogger(CustomLogger):
    """Records the answers of chat models in the background. It never raises into the app.

    The user is the request's `user`, else `metadata={"user_id": ...}`.

    Args:
        loop: Sends the responses; the default is one that environment variables configure, without a spool.
        line: Line of the responses; the default is the service's own.
        version: Name of the model; the default is the one that LiteLLM reports.

    """

    def __init__(
        self, loop: BackgroundLoopwright | None = None, *, line: str | None = None, version: str | None = None
    ) -> None:
        super().__init__()
        self._loop = loop or BackgroundLoopwright()
        self._line, self._version = line, version

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all answers were recorded, for at most `timeout` seconds. Return whether they were."""
        return self._loop.flush(timeout)

    def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Record the answer of a call, or of a stream that has ended."""
        self._record(kwargs, response_obj, start_time, end_time)

    async def async_log_success_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Record the answer of an asynchronous call. It only hands it to a thread, so the event loop is not blocked."""
        self._record(kwargs, response_obj, start_time, end_time)

    @never_raise
    def _record(self, kwargs: Mapping[str, Any], response: Any, start: Any, end: Any) -> None:
        if kwargs.get("call_type") not in CHAT_CALLS or not kwargs.get("messages"):
            return
        choices = [
            choice
            for each in getattr(response, "choices", None) or ()
            if (choice := _choice(each)) is not None
        ]
        response_id = getattr(response, "id", None)
        if not choices or not isinstance(response_id, str) or not response_id:
            return
        usage = getattr(response, "usage", None)
        self._loop.record(
            response_body(
                response_id,
                [_plain(message) for message in kwargs["messages"]],
                choices,
                model=self._version or getattr(response, "model", None) or kwargs.get("model"),
                user_id=_user(kwargs),
                usage={
                    "prompt_tokens": getattr(usage, "prompt_tokens", None) or 0,
                    "completion_tokens": getattr(usage, "completion_tokens", None) or 0,
                },
                latency_ms=_latency_ms(start, end),
                line=self._line,
            )
        )


def _choice(choice: Any) -> dict[str, Any] | None:
    """Return a choice in OpenAI's form; None for the chunk of a stream, which has no message."""
    message = getattr(choice, "message", None)
    if message is None:
        return None
    found = {
        "index": getattr(choice, "index", None),
        "message": _plain(message),
        "finish_reason": getattr(choice, "finish_reason", None),
    }
    return without_none(found)


def _plain(message: Any) -> dict[str, Any]:
    """Return a message as JSON has it: LiteLLM's are pydantic models, an app's are mappings."""
    dump = getattr(message, "model_dump", None)
    return dict(dump(exclude_none=True) if callable(dump) else message)


def _user(kwargs: Mapping[str, Any]) -> object:
    parameters = kwargs.get("litellm_params") or {}
    metadata = parameters.get("metadata") or {}
    optional = kwargs.get("optional_params") or {}
    return kwargs.get("user") or optional.get("user") or metadata.get("user_id")


def _latency_ms(start: Any, end: Any) -> float | None:
    if isinstance(start, datetime) and isinstance(end, datetime):
        return max(0.0, (end - start).total_seconds() * 1000)
    return None
