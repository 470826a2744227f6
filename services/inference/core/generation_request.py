"""Types that cross the engine port: a request, the pieces of its answer, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shared.errors import Rejected
from shared.events import Message, Usage

FinishReason = Literal["stop", "length", "cancelled"]
"""`stop`: end of text or a stop string. `length`: token or context limit. `cancelled`: the client disconnected."""
Status = Literal["completed", "failed", "cancelled"]


class ContextExceeded(Rejected):
    """The conversation does not fit into the model's context."""

    code = "context_length_exceeded"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. With `temperature` 0 decoding is greedy, and the other fields have no effect."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One chat request, pinned to one version.

    `n` is the number of choices. `max_tokens` limits the completion tokens of each choice; the engine lowers it to
    what the context leaves. A choice ends before the first occurrence of one of the strings in `stop`.
    """

    response_id: str
    version: str
    messages: tuple[Message, ...]
    max_tokens: int
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of one choice. The last piece of a choice carries its finish reason; its text may be empty."""

    choice: int
    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """The whole text of one choice. `finish_reason` is None if the choice did not finish."""

    index: int
    text: str
    finish_reason: FinishReason | None


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
