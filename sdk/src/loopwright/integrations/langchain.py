"""LangChain: a callback handler that records the answers of chat models (`loopwright[langchain]`).

    from loopwright.integrations.langchain import LoopwrightCallbackHandler

    handler = LoopwrightCallbackHandler()
    answer = model.invoke("Hi", config={"callbacks": [handler], "metadata": {"user_id": "u-17"}})
    loop.thumbs_up(answer.id, "u-17")

Feedback on an answer uses its `id`. A chain that returns no message has `handler.last_response_id`. Models that
Loopwright's inference serves need no handler: it records its own answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

try:
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.messages import BaseMessage, convert_to_openai_messages
    from langchain_core.outputs import ChatGeneration, LLMResult
except ImportError as error:
    raise ImportError(
        "loopwright.integrations.langchain needs langchain-core: pip install 'loopwright[langchain]'"
    ) from error

from loopwright.background import BackgroundLoopwright
from loopwright.integrations.recording import never_raise, response_body
from loopwright.wire import without_none

RUN_PREFIX: Final = "lc_run--"
"""LangChain's prefix of the id of an answer, before the id of its run."""
MAX_RUNS: Final = 10_000
"""Runs that began and may not end, because their request was cancelled."""
USER_FIELDS: Final = ("user_id", "userId")
_last_response: ContextVar[str | None] = ContextVar("loopwright_last_response", default=None)


@dataclass(frozen=True, slots=True)
class _Run:
    messages: list[dict[str, Any]]
    metadata: dict[str, Any]
    model: object
    began: float


class LoopwrightCallbackHandler(BaseCallbackHandler):
    """Records the answers of chat models in the background. It never raises into the app.

    The user is `user_id` of the run's metadata (`config={"metadata": {"user_id": ...}}`), else the handler's.

    Args:
        loop: Sends the responses; the default is one that environment variables configure, without a spool.
        user_id: Your id of the user, if the handler belongs to one user's session.
        line: Line of the responses; the default is the service's own.
        version: Name of the model; the default is the one that LangChain reports.

    """

    def __init__(
        self,
        loop: BackgroundLoopwright | None = None,
        *,
        user_id: str | None = None,
        line: str | None = None,
        version: str | None = None,
    ) -> None:
        super().__init__()
        self._loop = loop or BackgroundLoopwright()
        self._user_id, self._line, self._version = user_id, line, version
        self._runs: dict[UUID, _Run] = {}
        self._lock = threading.Lock()

    @property
    def last_response_id(self) -> str | None:
        """Id of the newest answer in this thread or task, for feedback on a chain's result."""
        return _last_response.get()

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all answers were recorded, for at most `timeout` seconds. Return whether they were."""
        return self._loop.flush(timeout)

    @never_raise
    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the conversation until its answer."""
        if not messages:
            return
        converted = convert_to_openai_messages(messages[0])
        parameters = kwargs.get("invocation_params") or {}
        known = metadata or {}
        model = parameters.get("model") or parameters.get("model_name") or known.get("ls_model_name")
        conversation = converted if isinstance(converted, list) else [converted]
        with self._lock:
            while len(self._runs) >= MAX_RUNS:
                self._runs.pop(next(iter(self._runs)))
            self._runs[run_id] = _Run(conversation, known, model, time.monotonic())

    @never_raise
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Record the answer."""
        run = self._take(run_id)
        generations = response.generations[0] if response.generations else []
        chats = [each for each in generations if isinstance(each, ChatGeneration)]
        if run is None or not chats:
            return
        message = chats[0].message
        response_id = message.id or f"{RUN_PREFIX}{run_id}"
        _last_response.set(response_id)
        answered_by = message.response_metadata.get("model_name")
        usage = getattr(message, "usage_metadata", None) or {}
        self._loop.record(
            response_body(
                response_id,
                run.messages,
                _choices(chats),
                model=self._version or answered_by or run.model,
                user_id=next(
                    (run.metadata[name] for name in USER_FIELDS if run.metadata.get(name)), self._user_id
                ),
                usage={
                    "prompt_tokens": usage.get("input_tokens", 0),
                    "completion_tokens": usage.get("output_tokens", 0),
                },
                latency_ms=(time.monotonic() - run.began) * 1000,
                line=self._line,
            )
        )

    @never_raise
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the conversation: there is no answer."""
        self._take(run_id)

    def _take(self, run_id: UUID) -> _Run | None:
        with self._lock:
            return self._runs.pop(run_id, None)


def _choices(chats: Sequence[ChatGeneration]) -> list[dict[str, Any]]:
    choices = []
    for index, chat in enumerate(chats):
        converted = convert_to_openai_messages(chat.message)
        reason = (chat.generation_info or {}).get("finish_reason") or chat.message.response_metadata.get(
            "finish_reason"
        )
        choice = {
            "index": index,
            "message": converted,
            "finish_reason": reason if isinstance(reason, str) else None,
        }
        choices.append(without_none(choice))
    return choices
