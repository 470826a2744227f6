"""The batch of Langfuse's ingestion API: which of its events are used, and traces as responses. Pure.

`score-create` is feedback. `trace-create`, `generation-create` and `generation-update` become a response under the
trace's id if they hold both a conversation and its answer; the trace comes before its generations. All other events,
and those without both, are accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

MAX_BATCH: Final = 1_000
SCORE: Final = "score-create"
TRACE: Final = "trace-create"
GENERATIONS: Final = frozenset({"generation-create", "generation-update"})
IGNORED: Final = frozenset(
    {
        "span-create",
        "span-update",
        "event-create",
        "sdk-log",
        "observation-create",
        "observation-update",
    }
)
"""Types that are accepted and ignored."""
UNKNOWN_VERSION: Final = "unknown"


class Envelope(BaseModel):
    """One event of a batch."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: str = Field(min_length=1, max_length=256)
    type: str = Field(max_length=64)
    body: dict[str, Any] = {}


class Batch(BaseModel):
    """A batch. Its events are checked one by one, so that a wrong one does not stop the others."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    batch: Annotated[list[Any], Field(max_length=MAX_BATCH)]


BATCH: Final = TypeAdapter(Batch)
ENVELOPE: Final = TypeAdapter(Envelope)


@dataclass(frozen=True, slots=True)
class TracedResponse:
    """A response that a batch holds, and the envelope that it came in."""

    envelope_id: str
    body: Mapping[str, Any]
    """Body of `POST /v1/responses`."""


def users_of_traces(events: Sequence[Envelope]) -> dict[str, str]:
    """Return the user of each trace that names one."""
    found = {}
    for event in events:
        trace_id, user = event.body.get("id"), event.body.get("userId")
        if event.type == TRACE and isinstance(trace_id, str) and isinstance(user, str) and user:
            found[trace_id] = user
    return found


def responses_of(events: Sequence[Envelope]) -> list[TracedResponse]:
    """Return one response per trace that holds a conversation and its answer."""
    users, models = users_of_traces(events), _models(events)
    found: dict[str, TracedResponse] = {}
    for event in sorted(events, key=lambda each: each.type != TRACE):
        if event.type != TRACE and event.type not in GENERATIONS:
            continue
        trace_id = event.body.get("id" if event.type == TRACE else "traceId")
        messages, answer = messages_of(event.body.get("input")), answer_of(event.body.get("output"))
        if not isinstance(trace_id, str) or trace_id in found or not messages or answer is None:
            continue
        body: dict[str, Any] = {
            "response_id": trace_id,
            "version": models.get(trace_id, UNKNOWN_VERSION),
            "messages": messages,
            "choices": [{"index": 0, "text": answer}],
        }
        if trace_id in users:
            body["user_id"] = users[trace_id]
        found[trace_id] = TracedResponse(event.id, body)
    return list(found.values())


def messages_of(value: Any) -> list[dict[str, str]]:
    """Return the conversation in OpenAI's form that an input holds, or an empty list.

    A text is one message of the user. A message whose content is no text makes the conversation unusable.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": value}] if value else []
    if isinstance(value, dict):
        value = value.get("messages")
    if not isinstance(value, list):
        return []
    messages = []
    for message in value:
        role, content = (
            (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        )
        # A role may be a list, too, which no set can be asked for.
        if role not in ("system", "developer", "user", "assistant") or not isinstance(content, str):
            return []
        messages.append({"role": role, "content": content})
    return messages


def answer_of(value: Any) -> str | None:
    """Return the text of an output: a text, an assistant's message, or a chat completion. None if it is none."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict) and isinstance(value.get("choices"), list) and value["choices"]:
        value = value["choices"][0]
    if isinstance(value, dict) and isinstance(value.get("message"), dict):
        value = value["message"]
    if isinstance(value, dict):
        value = value.get("content") if value.get("role", "assistant") == "assistant" else None
    return value if isinstance(value, str) and value else None


def _models(events: Sequence[Envelope]) -> dict[str, str]:
    models = {}
    for event in events:
        trace_id, model = event.body.get("traceId"), event.body.get("model")
        if event.type in GENERATIONS and isinstance(trace_id, str) and isinstance(model, str) and model:
            models[trace_id] = model[:256]
    return models
