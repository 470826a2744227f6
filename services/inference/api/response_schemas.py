"""Answers of `POST /v1/chat/completions`: OpenAI's completion object, and its chunks as server-sent events.

References: https://platform.openai.com/docs/api-reference/chat/object and .../chat/streaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson

from services.inference.core.generation_request import (
    ChoiceResult,
    GenerationRequest,
    GenerationResult,
    Piece,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from shared.events import Usage

DONE: Final = b"data: [DONE]\n\n"
"""The last event of a stream that succeeded."""
KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment: clients ignore it, and proxies see that the connection is in use."""
_LINE_BREAKS: Final = (
    ("\N{NEXT LINE}".encode(), b"\\u0085"),
    ("\N{LINE SEPARATOR}".encode(), b"\\u2028"),
    ("\N{PARAGRAPH SEPARATOR}".encode(), b"\\u2029"),
)
"""Characters at which some clients split lines, but which JSON does not need to escape."""


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
        "choices": [_choice_object(choice, request) for choice in result.choices],
        "usage": usage_object(result.usage),
    }


def _choice_object(choice: ChoiceResult, request: GenerationRequest) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    wants_logprobs = bool(request.options.logprobs)
    return {
        "index": choice.index,
        "message": message,
        "logprobs": _logprobs_object(choice.logprobs) if wants_logprobs else None,
        "finish_reason": choice.finish_reason,
    }


def _logprobs_object(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        _token_object(one) | {"top_logprobs": [_token_object(top) for top in one.top]} for one in logprobs
    ]
    return {"content": content, "refusal": None}


def _token_object(token: TokenLogprob | TopLogprob) -> dict[str, Any]:
    known = None if token.bytes is None else list(token.bytes)
    return {"token": token.token, "logprob": token.logprob, "bytes": known}


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

    def piece(self, piece: Piece) -> bytes:
        """Return a chunk with the new output of a choice; nothing if the piece has none."""
        if not (piece.text or piece.tool_calls or piece.logprobs):
            return b""
        delta: dict[str, Any] = {}
        if piece.text or not piece.tool_calls:
            delta["content"] = piece.text
        if piece.tool_calls:
            delta["tool_calls"] = [_delta_object(call) for call in piece.tool_calls]
        logprobs = _logprobs_object(piece.logprobs) if piece.logprobs else None
        return self._chunk(piece.choice, delta, None, logprobs=logprobs)

    def finish(self, choice: int, reason: str | None, not_recorded: str | None = None) -> bytes:
        """Return the last chunk of a choice. `not_recorded` is as in `completion_object`."""
        return self._chunk(choice, {}, reason, recording_object(not_recorded))

    def usage(self, usage: dict[str, int]) -> bytes:
        """Return the chunk before `[DONE]` if the client wants the usage, else nothing."""
        return server_sent_event(self._common | {"choices": [], "usage": usage}) if self._with_usage else b""

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        reason: str | None,
        extra: dict[str, Any] | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choices = [{"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}]
        usage = {"usage": None} if self._with_usage else {}
        return server_sent_event(self._common | {"choices": choices} | usage | (extra or {}))


def _delta_object(call: ToolCallDelta) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": call.arguments}
    delta: dict[str, Any] = {"index": call.index}
    if call.id is not None:
        delta |= {"id": call.id, "type": "function"}
    if call.name is not None:
        function["name"] = call.name
    return delta | {"function": function}


def server_sent_event(value: dict[str, Any]) -> bytes:
    """Return one server-sent event with a JSON object, on one line for every client."""
    data = orjson.dumps(value)
    for character, escape in _LINE_BREAKS:
        if character in data:
            data = data.replace(character, escape)
    return b"data: " + data + b"\n\n"
