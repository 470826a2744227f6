"""Schemas of OpenAI's chat API: requests with their limits, answers, streamed chunks, errors.

Reference: https://platform.openai.com/docs/api-reference/chat. Request fields that are not declared are ignored.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from services.inference.core.generation_request import GenerationRequest, GenerationResult
from shared.errors import (
    LoopwrightError,
    Malformed,
    Overloaded,
    Oversized,
    Rejected,
    Retryable,
    UnknownVersion,
)
from shared.events import MAX_CHOICES, MAX_MESSAGES, MAX_TEXT, Metadata, Usage, malformed
from shared.user_ids import UserId

MAX_PARTS = 64
MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 256
DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


OptionalUserId = Annotated[UserId | None, BeforeValidator(_none_if_empty)]
"""Some clients send an empty text instead of no user."""


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TextPart(_Input):
    """Part of a message. Only text is accepted, no images or audio."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_TEXT)


class ChatMessage(_Input):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[str, Field(max_length=MAX_TEXT)]
        | Annotated[list[TextPart], Field(max_length=MAX_PARTS)]
        | None
    ) = None

    def text(self) -> str:
        """Return the content as one string; parts are joined without a separator."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(_Input):
    """Options of a streamed answer."""

    include_usage: bool | None = False


class ChatRequest(_Input):
    """Body of `POST /v1/chat/completions`. A null means that the field is not set."""

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
    user: OptionalUserId = None
    safety_identifier: OptionalUserId = None
    metadata: Metadata | None = None

    @field_validator("stop")
    @classmethod
    def _limit_stop_strings(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MAX_STOP_STRINGS or not all(0 < len(stop) <= MAX_STOP_LENGTH for stop in stops):
            raise ValueError(
                f"expected at most {MAX_STOP_STRINGS} stop strings of 1 to {MAX_STOP_LENGTH} characters"
            )
        return value

    @field_validator("messages")
    @classmethod
    def _limit_joined_parts(cls, value: list[ChatMessage]) -> list[ChatMessage]:
        if any(len(message.text()) > MAX_TEXT for message in value):
            raise ValueError(f"a message has at most {MAX_TEXT} characters in all of its parts together")
        return value

    def user_id(self) -> str | None:
        """Return `user` or else `safety_identifier`, its newer name."""
        return self.user or self.safety_identifier

    def stop_strings(self) -> tuple[str, ...]:
        """Return the strings that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def token_limit(self) -> int | None:
        """Return `max_completion_tokens`, or `max_tokens`, its older name."""
        return self.max_completion_tokens or self.max_tokens

    def wants_usage(self) -> bool:
        """Return whether a streamed answer must end with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


def parse_chat_request(body: bytes) -> ChatRequest:
    """Parse a request body.

    Raises:
        Malformed: if it is invalid. The message names the field and does not repeat the input.

    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise malformed(error) from None


class GenerationFailed(LoopwrightError):
    """The engine failed to answer; the response was recorded as failed."""

    code = "generation_failed"


def usage_object(usage: Usage) -> dict[str, int]:
    """Return OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def recording_object(not_recorded: str | None) -> dict[str, Any]:
    """Return the field by which an answer says that it was not recorded and why; empty if it was recorded."""
    return {"loopwright": {"recorded": False, "detail": not_recorded}} if not_recorded else {}


def completion_object(
    request: GenerationRequest, result: GenerationResult, created: int, not_recorded: str | None = None
) -> dict[str, Any]:
    """Return OpenAI's chat completion object. `created` is in seconds since the epoch.

    `not_recorded` is why the response was not recorded, or None if it was.
    """
    return recording_object(not_recorded) | {
        "id": request.response_id,
        "object": "chat.completion",
        "created": created,
        "model": request.version,
        "choices": [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for choice in result.choices
        ],
        "usage": usage_object(result.usage),
    }


class ChunkEncoder:
    """Encoder of one streamed answer as server-sent events with OpenAI's chunk objects."""

    def __init__(self, *, response_id: str, created: int, version: str, with_usage: bool) -> None:
        self._common = {
            "id": response_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": version,
        }
        self._with_usage = with_usage

    def role(self, choice: int) -> bytes:
        """Return the first chunk of a choice."""
        return self._chunk(choice, {"role": "assistant", "content": ""}, None)

    def text(self, choice: int, text: str) -> bytes:
        """Return a chunk with new text of a choice."""
        return self._chunk(choice, {"content": text}, None)

    def finish(self, choice: int, reason: str | None, not_recorded: str | None = None) -> bytes:
        """Return the last chunk of a choice. `not_recorded` is as in `completion_object`."""
        return self._chunk(choice, {}, reason, recording_object(not_recorded))

    def usage(self, usage: dict[str, int]) -> bytes:
        """Return the chunk before `[DONE]` if the client wants the usage, else nothing."""
        return server_sent_event(self._common | {"choices": [], "usage": usage}) if self._with_usage else b""

    def _chunk(
        self, choice: int, delta: dict[str, str], reason: str | None, extra: dict[str, Any] | None = None
    ) -> bytes:
        choices = [{"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}]
        usage = {"usage": None} if self._with_usage else {}
        return server_sent_event(self._common | {"choices": choices} | usage | (extra or {}))


def server_sent_event(value: dict[str, Any]) -> bytes:
    """Return one server-sent event with a JSON object."""
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
"""Error class, HTTP status, OpenAI's type and code. The first class that matches counts; without a code, its own."""


def error_body(error: LoopwrightError) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and OpenAI's error object."""
    status, error_type, code = next((s, t, c) for cls, s, t, c in _ERRORS if isinstance(error, cls))
    param = "model" if status == 404 else None
    return status, {
        "error": {"message": str(error), "type": error_type, "param": param, "code": code or error.code}
    }


def error_response(error: LoopwrightError) -> JSONResponse:
    """Return the error as an HTTP response."""
    status, body = error_body(error)
    return JSONResponse(body, status, {"Retry-After": "1"} if status in (429, 503) else None)
