"""Response bodies of the feedback API, and examples of its requests for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]


class Answer(BaseModel):
    """Base of the response bodies."""

    model_config = ConfigDict(frozen=True)


class FeedbackAnswer(Answer):
    """What happened to a feedback event."""

    event_id: str
    status: Literal["accepted", "duplicate", "valid"] = Field(
        description="`accepted`: the event is durable. `duplicate`: it was sent before and counts once. `valid`: a dry "
        "run found no fault; nothing was written."
    )
    actionable: bool = Field(description="Whether a model can be trained on the event.")
    hint: str | None = Field(description="What to write instead, in the language of the comment where known.")
    hint_code: Literal["vague_comment"] | None = Field(
        None, description="The hint without a language, for apps that have texts of their own."
    )
    note: str | None = Field(None, description="What to do better next time.")


class ResponseAnswer(Answer):
    """What happened to a response."""

    response_id: str
    status: Literal["accepted", "valid"] = Field(
        description="`accepted`: the response is durable. `valid`: a dry run found no fault; nothing was written."
    )


FEEDBACK_EXAMPLES: Final[dict[str, Json]] = {
    "thumbs": {
        "response_id": "chatcmpl-019cb6",
        "event_id": "click-17",
        "user_id": "u-17",
        "kind": "thumbs",
        "value": "up",
    },
    "rating": {"response_id": "chatcmpl-019cb6", "user_id": "u-17", "kind": "rating", "value": 4},
    "correction": {
        "response_id": "chatcmpl-019cb6",
        "event_id": "edit-1",
        "user_id": "u-17",
        "kind": "correction",
        "value": "Wellington is the capital of New Zealand.",
        "tags": {"screen": "search"},
        "occurred_at": "2026-03-04T05:06:07Z",
    },
    "comment": {
        "response_id": "chatcmpl-019cb6",
        "user_id": "u-17",
        "kind": "comment",
        "value": "Name the year in which it became the capital.",
    },
    "preference": {
        "response_id": "chatcmpl-019cb6",
        "user_id": "u-17",
        "kind": "preference",
        "value": {"over": "Auckland is the capital."},
    },
    "retract": {"response_id": "chatcmpl-019cb6", "user_id": "u-17", "kind": "retract", "value": "click-17"},
}
RESPONSE_EXAMPLES: Final[dict[str, Json]] = {
    "text": {
        "response_id": "my-app-1",
        "version": "my-model-2026-03",
        "messages": [{"role": "user", "content": "What is the capital of New Zealand?"}],
        "choices": [{"index": 0, "text": "Auckland."}],
        "user_id": "u-17",
    },
    "openai": {
        "response_id": "chatcmpl-9x",
        "version": "gpt-x",
        "messages": [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": [{"type": "text", "text": "Capital of New Zealand?"}], "name": "ann"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "look_up", "arguments": '{"of": "New Zealand"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "Wellington"},
        ],
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Wellington"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 31, "completion_tokens": 2},
        "latency_ms": 412.5,
        "metadata": {"screen": "search"},
        "created_at": "2026-03-04T05:06:07Z",
    },
    "failed": {
        "response_id": "my-app-2",
        "version": "my-model-2026-03",
        "messages": [{"role": "user", "content": "Hello"}],
        "status": "failed",
        "error": "the model server did not answer",
    },
}
TOKEN_EXAMPLES: Final[dict[str, Json]] = {"page": {"response_id": "chatcmpl-019cb6", "user_id": "u-17"}}
ERASURE_EXAMPLES: Final[dict[str, Json]] = {
    "user": {"user_id": "u-17", "request_id": "ticket-4711"},
    "subject": {"subject": "u_0b6f3c5f1f5a4f7d8e9a0b1c2d3e4f50", "request_id": "ticket-4712"},
}
