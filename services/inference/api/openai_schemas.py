"""The shapes of OpenAI's chat API that are spoken here: requests with their bounds, answers, chunks, errors.

Reference: https://platform.openai.com/docs/api-reference/chat. Fields that are not listed are ignored.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shared.errors import (
    LoopwrightError,
    Malformed,
    Overloaded,
    Oversized,
    Rejected,
    Retryable,
    UnknownVersion,
)
from shared.events import MAX_CHOICES, MAX_MESSAGES, MAX_TEXT, malformed

MAX_PARTS = 64
MAX_STOPS = 4
MAX_STOP_TEXT = 256
DONE = b"data: [DONE]\n\n"


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TextPart(_Input):
    """Text only: images and sound are refused."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)


class ChatMessage(_Input):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[str, Field(max_length=MAX_TEXT)]
        | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]
        | None
    ) = None

    def text(self) -> str:
        """Parts are joined as they are."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(_Input):
    include_usage: bool | None = False


class ChatRequest(_Input):
    """`POST /v1/chat/completions`. As with OpenAI, no temperature means 1, and null means absent."""

    model: str = Field(min_length=1, max_length=256)
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    user: str | None = Field(None, max_length=512)
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = (
        Field(None, max_length=16)
    )

    @field_validator("stop")
    @classmethod
    def _bounded(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_TEXT for stop in stops):
            raise ValueError(f"at most {MAX_STOPS} stop strings of 1 to {MAX_STOP_TEXT} characters")
        return value

    @field_validator("messages")
    @classmethod
    def _joined_bound(cls, value: list[ChatMessage]) -> list[ChatMessage]:
        if any(len(message.text()) > MAX_TEXT for message in value):
            raise ValueError(f"a message has at most {MAX_TEXT} characters, its parts together")
        return value

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def token_bound(self) -> int | None:
        """`max_completion_tokens`, or its older name."""
        return self.max_completion_tokens or self.max_tokens

    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


def read_request(body: bytes) -> ChatRequest:
    """Raises `Malformed` naming the field, without repeating the input."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise malformed(error) from None


class ContextExceeded(Rejected):
    """The conversation does not fit into the model's context."""

    code = "context_length_exceeded"


class GenerationFailed(LoopwrightError):
    """The model ran into an error; the request was recorded as failed."""

    code = "generation_failed"


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def completion(
    *,
    response_id: str,
    created: int,
    version: str,
    choices: list[tuple[str, str | None]],
    used: dict[str, int],
) -> dict[str, Any]:
    """A whole answer; `choices` are (text, finish_reason) in order."""
    return {
        "id": response_id,
        "object": "chat.completion",
        "created": created,
        "model": version,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(choices)
        ],
        "usage": used,
    }


class ChunkEncoder:
    """Server-sent events of one streamed answer; each says the same id and version."""

    def __init__(self, *, response_id: str, created: int, version: str, with_usage: bool) -> None:
        self._head = {
            "id": response_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": version,
        }
        self._with_usage = with_usage

    def role(self, choice: int) -> bytes:
        return self._choice(choice, {"role": "assistant", "content": ""}, None)

    def text(self, choice: int, text: str) -> bytes:
        return self._choice(choice, {"content": text}, None)

    def end(self, choice: int, reason: str | None) -> bytes:
        return self._choice(choice, {}, reason)

    def usage(self, used: dict[str, int]) -> bytes:
        """The last chunk before `[DONE]`, where it was asked for."""
        return event(self._head | {"choices": [], "usage": used}) if self._with_usage else b""

    def _choice(self, choice: int, delta: dict[str, str], reason: str | None) -> bytes:
        part = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event(self._head | {"choices": [part]} | ({"usage": None} if self._with_usage else {}))


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


_ERRORS: tuple[tuple[type[LoopwrightError], int, str, str | None], ...] = (
    (UnknownVersion, 404, "invalid_request_error", "model_not_found"),
    (Oversized, 413, "invalid_request_error", None),
    (Malformed, 400, "invalid_request_error", "invalid_request"),
    (Rejected, 400, "invalid_request_error", None),
    (Overloaded, 429, "rate_limit_error", "queue_full"),
    (Retryable, 503, "service_unavailable_error", None),
    (LoopwrightError, 500, "server_error", None),
)


def error_body(error: LoopwrightError) -> tuple[int, dict[str, Any]]:
    """(HTTP status, OpenAI's error object)"""
    status, kind, code = next((s, k, c) for cls, s, k, c in _ERRORS if isinstance(error, cls))
    param = "model" if status == 404 else None
    return status, {
        "error": {"message": str(error), "type": kind, "param": param, "code": code or error.code}
    }


def error_response(error: LoopwrightError) -> JSONResponse:
    status, body = error_body(error)
    return JSONResponse(body, status, {"Retry-After": "1"} if status in (429, 503) else None)
