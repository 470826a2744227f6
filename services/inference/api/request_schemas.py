"""Body of `POST /v1/chat/completions`: OpenAI's fields with their limits, and what happens to every other field.

Reference: https://platform.openai.com/docs/api-reference/chat/create. The rules are in docs/decisions/openai-api.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from services.inference.core.generation_options import GenerationOptions, effective_options
from services.inference.core.generation_request import (
    InvalidParameter,
    Sampling,
    UnknownParameter,
    UnsupportedParameter,
)
from shared.chat_messages import CONTENT_TAGS, ChatMessage, UnsupportedContent
from shared.errors import Malformed
from shared.events import MAX_CHOICES, MAX_MESSAGES, Metadata
from shared.request_values import WHOLE_NUMBER, check_json_numbers, readable_fault
from shared.user_ids import OptionalUserId

MAX_STOP_STRINGS: Final = 4
MAX_STOP_LENGTH: Final = 256
MAX_NAMED: Final = 64
"""Characters of a name that an error repeats."""
IGNORED_FIELDS: Final = frozenset(
    {
        "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "prediction",
        "cache_salt", "priority", "request_id",
    }
)  # fmt: skip
"""Fields that change how an answer is stored, billed, cached or scheduled, but not the answer."""
UNSUPPORTED_FIELDS: Final[Mapping[str, tuple[tuple[Any, ...], str]]] = {
    "functions": (([],), "use `tools`"),
    "function_call": (("none", "auto"), "use `tool_choice`"),
    "modalities": ((["text"],), "only text is generated"),
    "audio": ((), "only text is generated"),
    "verbosity": (("medium",), "ask for a short or long answer in the messages"),
    "web_search_options": ((), "put what the model should know into the messages"),
    "moderation": ((), "check the texts in your app"),
    "chat_template": ((), "versions are served with the template that they were trained with"),
    "chat_template_kwargs": (({},), "set LOOPWRIGHT_CHAT_TEMPLATE_KWARGS for the trainer and for inference"),
    "documents": (([],), "put them into the messages"),
    "add_generation_prompt": ((True,), "the answer always begins a new turn"),
    "continue_final_message": ((False,), "the answer always begins a new turn"),
    "add_special_tokens": ((False,), "the chat template has them"),
    "echo": ((False,), "the prompt is not part of the answer"),
    "skip_special_tokens": ((True,), "an answer has no special tokens"),
    "spaces_between_special_tokens": ((True, False), "an answer has no special tokens"),
    "include_stop_str_in_output": ((False,), "an answer ends before a stop string"),
    "use_beam_search": ((False,), "use `temperature` 0"),
    "length_penalty": ((1,), "it belongs to beam search"),
    "best_of": ((1,), "use `n`"),
    "truncate_prompt_tokens": ((), "shorten the conversation"),
    "prompt_logprobs": ((), "only tokens of the answer have log-probabilities: use `logprobs`"),
    "return_token_ids": ((False,), "use `logprobs`"),
    "return_tokens_as_token_ids": ((False,), "use `logprobs`"),
    "guided_json": ((), "use `response_format` or `structured_outputs`"),
    "guided_regex": ((), "use `structured_outputs`"),
    "guided_choice": ((), "use `structured_outputs`"),
    "guided_grammar": ((), "use `structured_outputs`"),
}
"""Known fields that nothing supports, with the values that have no effect and are accepted, and what to do instead."""


class _Input(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class StreamOptions(_Input):
    """Options of a streamed answer."""

    include_usage: bool | None = False


class ChatRequest(GenerationOptions):
    """Body of `POST /v1/chat/completions`. A null means that the field is not set."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1, max_length=256)
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1), WHOLE_NUMBER] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1), WHOLE_NUMBER] | None = None
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE_NUMBER] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), WHOLE_NUMBER] | None = None
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

    def sampling(self) -> Sampling:
        """Return the sampling, with OpenAI's defaults.

        With `top_p` 0 only the most likely token is left, so decoding is greedy.
        """
        greedy = self.top_p == 0
        return Sampling(
            temperature=0.0 if greedy else 1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if greedy or self.top_p is None else self.top_p,
            seed=self.seed,
        )

    def options(self) -> GenerationOptions:
        """Return the options that can change the answer."""
        return effective_options(self)

    def require_support(self, supported: frozenset[str]) -> None:
        """Raise `UnsupportedParameter` if the request has an option that the engine does not support."""
        missing = sorted(self.options().names() - supported)
        if missing:
            raise _unsupported(missing[0], "this deployment's engine has no such option: leave the field out")
        if "tools" in supported:
            return
        for number, message in enumerate(self.messages):
            if message.tool_calls:
                raise _unsupported(
                    f"messages[{number}].tool_calls",
                    "this deployment's engine does not support tools: leave out messages with tool calls",
                )


def parse_chat_request(body: bytes) -> ChatRequest:
    """Parse a request body.

    Raises:
        InvalidParameter: if it is invalid. The message names the field and does not repeat the input.
        UnsupportedParameter: if a field would change the answer, but nothing supports it.
        UnknownParameter: if a field does not exist.

    """
    try:
        check_json_numbers(body)
        chat = ChatRequest.model_validate_json(body)
    except Malformed as error:
        raise InvalidParameter(str(error), None) from None
    except ValidationError as error:
        raise _describe(dict(error.errors(include_url=False, include_input=False)[0])) from None
    for name, value in (chat.model_extra or {}).items():
        _check_extra(name, value)
    _check_options(chat)
    return chat


def _check_extra(name: str, value: Any) -> None:
    """Refuse a field that is not declared, unless it has no effect on the answer."""
    if value is None or name in IGNORED_FIELDS:
        return
    if name not in UNSUPPORTED_FIELDS:
        shown = name if len(name) <= MAX_NAMED and name.isprintable() else "..."
        raise UnknownParameter(f"unknown parameter {shown!r}: check its spelling, or leave it out", shown)
    without_effect, remedy = UNSUPPORTED_FIELDS[name]
    if value not in without_effect:
        raise _unsupported(name, remedy)


def _check_options(chat: ChatRequest) -> None:
    """Refuse options that need others."""
    if chat.tool_choice not in (None, "none", "auto") and not chat.tools:
        raise InvalidParameter("tool_choice needs tools: send them, or leave tool_choice out", "tool_choice")
    if chat.top_logprobs is not None and chat.logprobs is not True and chat.top_logprobs > 0:
        raise InvalidParameter("top_logprobs needs logprobs: set logprobs to true", "top_logprobs")


def _unsupported(param: str, remedy: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"the parameter {param} is not supported: {remedy}", param)


def _describe(fault: dict[str, Any]) -> InvalidParameter:
    param, reason = _path(fault["loc"]), readable_fault(fault)
    message = f"{param}: {reason}" if param else f"the body is not valid: {reason}"
    cause = fault.get("ctx", {}).get("error")
    kind = UnsupportedParameter if isinstance(cause, UnsupportedContent) else InvalidParameter
    return kind(message, param)


def _path(location: tuple[int | str, ...]) -> str | None:
    """Return the path of a field as OpenAI writes it, such as `messages[0].content`; None for the whole body."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in _UNION_TAGS:
            continue
        elif part.isidentifier() and len(part) <= MAX_NAMED:
            path += f".{part}" if path else part
        else:  # a key that the caller chose
            break
    return path or None


_UNION_TAGS: Final = frozenset({*CONTENT_TAGS, "NamedTool", "str", "list[str]"})
