"""Types that cross the engine port: a request, the pieces of its answer, and its result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from services.inference.core.generation_options import GenerationOptions
from shared.errors import Malformed, Rejected
from shared.events import Message, Usage

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
"""`stop`: end of text or a stop string. `length`: token or context limit. `tool_calls`: the model waits for the results
of its calls. `cancelled`: the client disconnected."""
Status = Literal["completed", "failed", "cancelled"]


class ContextExceeded(Rejected):
    """The conversation does not fit into the model's context."""

    code = "context_length_exceeded"


class InvalidParameter(Malformed):
    """A field of the request has a value that is not valid. `param` is the field, such as `messages[0].content`."""

    code = "invalid_request"

    def __init__(self, message: str, param: str | None) -> None:
        self.param = param
        super().__init__(message)


class UnsupportedParameter(InvalidParameter):
    """A field of the request would change the answer, but this deployment does not support it."""

    code = "unsupported_parameter"


class UnknownParameter(InvalidParameter):
    """The API has no field of this name."""

    code = "unknown_parameter"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. With `temperature` 0 decoding is greedy, and the other fields have no effect.

    `top_p` is greater than 0.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One chat request, pinned to one version.

    `n` is the number of choices. `max_tokens` limits the completion tokens of each choice; the engine lowers it to
    what the context leaves. A choice ends before the first occurrence of one of the strings in `stop`. `options` has
    only fields that the engine supports.
    """

    response_id: str
    version: str
    messages: tuple[Message, ...]
    max_tokens: int
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    options: GenerationOptions = field(default_factory=GenerationOptions)


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a tool call.

    `index` is the call's position among those of its choice. The first part of a call has its id and name;
    `arguments` continues the text of its arguments.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A function that the model asks the app to call. `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token that was likely at a position. `bytes` are those of its text, if known."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer with its log-probability (natural, finite), and the most likely ones at its position."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None
    top: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """New output of one choice: text, parts of tool calls, log-probabilities of the tokens behind both.

    The last piece of a choice carries its finish reason; all else in it may be empty.
    """

    choice: int
    text: str
    finish_reason: FinishReason | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """The whole output of one choice. `finish_reason` is None if the choice did not finish."""

    index: int
    text: str
    finish_reason: FinishReason | None
    tool_calls: tuple[FunctionCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """The end of a request.

    `choices` is empty if generation never started. `first_token_at` is the `time.monotonic()` of the first token of
    any choice.
    """

    status: Status
    usage: Usage
    choices: tuple[ChoiceResult, ...] = ()
    error: str | None = None
    first_token_at: float | None = None


def join_tool_calls(deltas: Iterable[ToolCallDelta]) -> tuple[FunctionCall, ...]:
    """Return the calls that consist of these parts, in the order of their index."""
    ids: dict[int, tuple[str, str]] = {}
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        known_id, known_name = ids.get(delta.index, ("", ""))
        ids[delta.index] = (known_id or delta.id or "", known_name or delta.name or "")
        arguments.setdefault(delta.index, []).append(delta.arguments)
    return tuple(FunctionCall(*ids[index], "".join(arguments[index])) for index in sorted(ids))
