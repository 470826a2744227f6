"""vLLM's chat API, for requests with tools: only the server can tell a tool call from text. Pure functions.

The server renders the prompt itself, so a text that spells out a special token would become one. Such requests are
refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from services.inference.core.generation_request import (
    GenerationRequest,
    InvalidParameter,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from services.inference.engine.vllm.completions_api import Call, ChoiceDelta, finite_logprob, sampling_fields
from shared.events import Message

CHAT: Final = "/v1/chat/completions"


def needs_chat_api(request: GenerationRequest) -> bool:
    """Return whether tools, or calls and results of tools in the conversation, need the server's own template."""
    has_calls = any(message.tool_calls or message.role == "tool" for message in request.messages)
    return request.options.tools is not None or has_calls


def chat_call(
    request: GenerationRequest,
    *,
    max_tokens: int,
    stop: Sequence[str],
    stop_token_ids: Sequence[int],
    template_kwargs: Mapping[str, Any],
) -> Call:
    """Return the call for a conversation. The caller lowers `max_completion_tokens` to what the context leaves."""
    options = request.options.to_json()
    body = (
        sampling_fields(request, stop, stop_token_ids)
        | {
            "messages": [_message(message) for message in request.messages],
            "max_completion_tokens": max_tokens,
            "chat_template_kwargs": dict(template_kwargs),
        }
        | options
    )
    body["stop_token_ids"] = [*stop_token_ids, *options.get("stop_token_ids", [])]
    return Call(CHAT, body, parse_chat_event, None)


def tokenize_body(call: Call) -> dict[str, Any]:
    """Return the body with which a server counts the tokens of the call's prompt."""
    names = ("model", "messages", "tools", "chat_template_kwargs")
    return {name: call.body[name] for name in names if name in call.body}


def refuse_control_text(request: GenerationRequest, find: Callable[[str], str | None]) -> None:
    """Refuse a request in which a text spells out a special token.

    Raises:
        InvalidParameter: it names the message.

    """
    texts = [
        (f"messages[{index}]", json.dumps(_message(message), ensure_ascii=False))
        for index, message in enumerate(request.messages)
    ]
    texts.append(("tools", json.dumps(request.options.to_json().get("tools"), ensure_ascii=False)))
    for param, text in texts:
        token = find(text)
        if token is not None:
            raise InvalidParameter(
                f"{param} contains {token!r}, which has a special meaning to the model; with tools, no text may "
                "contain it",
                param,
            )


def parse_chat_event(event: Mapping[str, Any]) -> list[ChoiceDelta]:
    """Return what a stream's event adds to the choices. Raises KeyError or TypeError if it is something else."""
    usage = event.get("usage") or {}
    return [
        ChoiceDelta(
            int(choice["index"]),
            choice["delta"].get("content") or "",
            choice.get("finish_reason"),
            usage.get("completion_tokens"),
            tuple(map(_logprob, (choice.get("logprobs") or {}).get("content") or ())),
            tuple(map(_tool_call, choice["delta"].get("tool_calls") or ())),
        )
        for choice in event["choices"]
    ]


def _message(message: Message) -> dict[str, Any]:
    value = message.model_dump(mode="json", exclude_none=True)
    return value | ({"role": "system"} if message.role == "developer" else {})


def _tool_call(value: Mapping[str, Any]) -> ToolCallDelta:
    function = value.get("function") or {}
    return ToolCallDelta(
        int(value["index"]), value.get("id"), function.get("name"), function.get("arguments") or ""
    )


def _logprob(value: Mapping[str, Any]) -> TokenLogprob:
    top = tuple(
        TopLogprob(each["token"], finite_logprob(each["logprob"]), _as_tuple(each.get("bytes")))
        for each in value.get("top_logprobs") or ()
    )
    return TokenLogprob(value["token"], finite_logprob(value["logprob"]), _as_tuple(value.get("bytes")), top)


def _as_tuple(value: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value)
