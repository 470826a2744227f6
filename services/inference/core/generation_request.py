"""One chat request on its way through the engine: what is asked, its rows, and what is told about it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.inference.core.detokenizer import IncrementalDetokenizer
from shared.events import MAX_TEXT

Finish = Literal["stop", "length", "cancelled"]
Status = Literal["completed", "failed", "cancelled"]
Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Requests with equal sampling can share a batch. `temperature` 0 is greedy, whatever the rest says."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def key(self) -> tuple[float, float, int | None]:
        """Greedy requests are all alike; a seed counts only where chance does."""
        return (0.0, 1.0, None) if self.temperature == 0 else (self.temperature, self.top_p, self.seed)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one choice, and with the last piece why it ended."""

    choice: int
    text: str
    finish_reason: Finish | None = None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """All choices have ended."""

    status: Status
    error: str | None = None


class BatchRow:
    """One choice being generated: one row of a batch."""

    def __init__(self, ask: GenerationRequest, index: int, decode: Decode) -> None:
        self.ask = ask
        self.index = index
        self.tokens = 0
        self.finish_reason: Finish | None = None
        self._stream = IncrementalDetokenizer(decode, ask.stop)

    @property
    def text(self) -> str:
        return self._stream.text

    def take(self, token: int, eos: frozenset[int]) -> None:
        """The next token. Tells the client what it sets free; after the end, tokens are padding and
        ignored."""
        if self.finish_reason is not None:
            return
        self.tokens += 1
        self.ask.token_came()
        text = "" if token in eos else self._stream.push(token)
        reason: Finish | None = None
        if self.ask.cancelled:
            reason = "cancelled"
        elif token in eos or self._stream.stopped:
            reason = "stop"
        elif self.tokens >= self.ask.max_tokens or self._stream.length >= MAX_TEXT:
            reason = "length"
        if reason is not None:
            text += self._stream.flush()
            self.finish_reason = reason
        if text or reason:
            self.ask.tell(Piece(self.index, text, reason))


@dataclass(eq=False)
class GenerationRequest:
    """One admitted request, pinned to `version`. Ends exactly once, by `end`, whatever happens to it.

    `on_piece` and `on_end` are called from the engine's thread (from the caller's where the engine never
    had it); they must be quick and must not raise.
    """

    response_id: str
    version: str
    prompt: Sequence[int]
    max_tokens: int
    on_piece: Callable[[Piece], None]
    on_end: Callable[[GenerationRequest, GenerationResult], None]
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    rows: list[BatchRow] = field(default_factory=list)
    admitted_at: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    cancelled: bool = False
    ended: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def batch_key(self) -> tuple[str, tuple[float, float, int | None]]:
        """Asks with equal keys can be generated together; a seed is only kept when alone."""
        return self.version, self.sampling.key()

    @property
    def alone(self) -> bool:
        """A seeded answer depends on the whole batch, so it gets one of its own."""
        return self.sampling.key()[2] is not None

    def completion_tokens(self) -> int:
        return sum(row.tokens for row in self.rows)

    def cancel(self) -> None:
        """The client is gone: rows end at their next token, and a waiting ask is dropped."""
        self.cancelled = True

    def token_came(self) -> None:
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()

    def tell(self, piece: Piece) -> None:
        self.on_piece(piece)

    def end(self, end: GenerationResult) -> None:
        """The first call counts."""
        with self._lock:
            if self.ended:
                return
            self.ended = True
        self.on_end(self, end)

    def end_if_done(self) -> None:
        """Ends the ask when its last row has ended, without waiting for the rest of the batch."""
        if not self.ended and self.rows and all(row.finish_reason is not None for row in self.rows):
            self.end(GenerationResult("cancelled" if self.cancelled else "completed"))
