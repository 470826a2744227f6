"""Schemas of inference's answers and errors, for its OpenAPI document. The routes write these bodies themselves.

Reference: https://platform.openai.com/docs/api-reference/chat/object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from services.inference.api.request_schemas import ChatRequest
from shared.adapters.openapi import json_body, problems
from shared.events import ToolCall

Json = dict[str, Any]
DESCRIPTION: Final = (
    "Chat with the version that serves, with any OpenAI client. `docs/decisions/openai-api.md` has the list of fields: "
    "one that changes the answer and is not supported gets a 400 that names it."
)
EXAMPLES: Final[dict[str, Json]] = {
    "chat": {
        "model": "assistant",
        "messages": [{"role": "user", "content": "What is the capital of New Zealand?"}],
        "user": "u-17",
    },
    "stream": {
        "model": "assistant",
        "messages": [{"role": "user", "content": "Write a haiku."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
    },
}


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class ErrorDetails(_Answer):
    """What went wrong and what to do."""

    message: str
    type: str
    param: str | None = Field(description="Path of the field, such as `messages[0].content`.")
    code: str | None


class ErrorObject(_Answer):
    """OpenAI's error object."""

    error: ErrorDetails


class CompletionMessage(_Answer):
    """The message of a choice."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCall] | None = None


class CompletionChoice(_Answer):
    """One answer."""

    index: int
    message: CompletionMessage
    logprobs: Json | None
    finish_reason: str | None


class CompletionUsage(_Answer):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(_Answer):
    """OpenAI's completion object. Feedback refers to its `id`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str = Field(description="The version that answered.")
    choices: list[CompletionChoice]
    usage: CompletionUsage
    loopwright: Json | None = Field(None, description="Set if the answer was not recorded, with the reason.")


class ModelObject(_Answer):
    """The line, or a loaded version."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    loopwright: Json = Field(description="State of the rollout, or the role and digest of the version.")


class ModelList(_Answer):
    """The line and the loaded versions."""

    object: Literal["list"]
    data: list[ModelObject]


CHAT_BODY: Final = json_body(TypeAdapter(ChatRequest), EXAMPLES)
CHAT_ANSWERS: Final[dict[int, Json]] = {
    200: {
        "description": "The answer, whole or as server-sent events.",
        "model": ChatCompletion,
        "content": {
            "text/event-stream": {
                "schema": {"description": "Events with OpenAI's chunk objects as data, then `data: [DONE]`."}
            }
        },
    }
}


def errors(*statuses: int, besides: Mapping[int, Json]) -> dict[int | str, Json]:
    """Return the `responses` of a route: OpenAI's error object for these statuses, and those of `besides`."""
    return problems(*statuses, besides=besides, media_type="application/json", schema=ErrorObject.__name__)
