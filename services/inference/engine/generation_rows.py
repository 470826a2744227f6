"""Bookkeeping of the transformers engine: accepted requests, and the rows that generate their choices."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

from services.inference.core.detokenizer import IncrementalDetokenizer
from services.inference.core.generation_request import (
    ChoiceResult,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    Piece,
    Status,
)
from services.inference.engine.port import GenerationListener
from shared.events import MAX_CONTENT, Usage

Decode = Callable[[list[int]], str]


class ChoiceRow:
    """One choice that is generated or waits for it: one row of a batch. Only the engine's thread uses it.

    Attributes:
        id: Name of the row, unique in the process.
        generation: The request that it belongs to.
        index: Number of the choice.
        token_count: Generated tokens.
        finish_reason: Why the row ended, or None.
        random: Source of the row's random numbers. With a seed they depend on the seed and `index` only.

    """

    def __init__(self, generation: QueuedGeneration, index: int, decode: Decode) -> None:
        self.id = f"{generation.request.response_id}/{index}/{id(generation)}"
        self.generation = generation
        self.index = index
        self.token_count = 0
        self.finish_reason: FinishReason | None = None
        seed = generation.request.sampling.seed
        self.random = random.Random(None if seed is None else f"{seed}/{index}")  # noqa: S311 - not a secret
        self._detokenizer = IncrementalDetokenizer(decode, generation.stop_strings)

    @property
    def version(self) -> str:
        """Name of the version that generates the row."""
        return self.generation.request.version

    @property
    def needs_own_step(self) -> bool:
        """Whether no other row may share a forward pass with this one.

        In bfloat16 a token's probabilities depend on the other rows of its batch, by rounding. A row with a seed must
        repeat its answer whatever else is running, so it is computed alone.
        """
        sampling = self.generation.request.sampling
        return sampling.temperature > 0 and sampling.seed is not None

    @property
    def max_length(self) -> int:
        """Limit of prompt and answer together, in tokens."""
        return self.generation.max_length

    @property
    def text(self) -> str:
        """Text sent to the listener so far."""
        return self._detokenizer.text

    def push(self, token: int, eos_token_ids: frozenset[int]) -> None:
        """Add the row's next token and send the text that becomes final with it. Ended rows ignore it."""
        if self.finish_reason is not None:
            return
        self.token_count += 1
        self.generation.note_token()
        new_text = "" if token in eos_token_ids else self._detokenizer.push(token)
        if self.generation.cancelled:
            self.finish_reason = "cancelled"
        elif token in eos_token_ids or self._detokenizer.stopped:
            self.finish_reason = "stop"
        elif self.token_count >= self.generation.max_tokens or self._detokenizer.length >= MAX_CONTENT:
            self.finish_reason = "length"
        self._send(new_text)

    def cancel(self) -> None:
        """End the row as cancelled, with the text so far."""
        if self.finish_reason is None:
            self.finish_reason = "cancelled"
            self._send("")

    def _send(self, new_text: str) -> None:
        if self.finish_reason is not None:
            new_text += self._detokenizer.flush()
        if new_text or self.finish_reason:
            self.generation.send(Piece(self.index, new_text, self.finish_reason))


class QueuedGeneration:
    """An accepted request, waiting or running. It ends exactly once, by `end` or `end_if_finished`.

    Args:
        request: The request.
        prompt: Its token ids.
        max_tokens: Limit of completion tokens per choice, within the context.
        stop_strings: The request's own stop strings and those that the chat template needs.
        listener: Receives pieces and the result.

    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt: Sequence[int],
        max_tokens: int,
        stop_strings: tuple[str, ...],
        listener: GenerationListener,
    ) -> None:
        self.request = request
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.stop_strings = stop_strings
        self.rows: list[ChoiceRow] = []
        self.cancelled = False
        self._listener = listener
        self._first_token_at: float | None = None
        self._ended = False
        self._lock = threading.Lock()

    @property
    def max_length(self) -> int:
        """Limit of prompt and answer of one choice together, in tokens."""
        return len(self.prompt) + self.max_tokens

    @property
    def ended(self) -> bool:
        """Whether the listener has the result."""
        return self._ended

    def start_rows(self, decode: Decode) -> list[ChoiceRow]:
        """Create and return one row per choice."""
        self.rows = [ChoiceRow(self, index, decode) for index in range(self.request.n)]
        return self.rows

    def cancel(self) -> None:
        """Let the rows end before the next step."""
        self.cancelled = True

    def note_token(self) -> None:
        """Remember when the first token was generated."""
        if self._first_token_at is None:
            self._first_token_at = time.monotonic()

    def send(self, piece: Piece) -> None:
        """Pass a piece to the listener."""
        self._listener.on_piece(piece)

    def end(self, status: Status, error: str | None = None) -> None:
        """End the request. Only the first call has an effect."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        usage = Usage(
            prompt_tokens=len(self.prompt), completion_tokens=sum(row.token_count for row in self.rows)
        )
        choices = tuple(ChoiceResult(row.index, row.text, row.finish_reason) for row in self.rows)
        self._listener.on_result(GenerationResult(status, usage, choices, error, self._first_token_at))

    def end_if_finished(self) -> None:
        """End the request if its rows have all finished."""
        if not self._ended and self.rows and all(row.finish_reason is not None for row in self.rows):
            self.end("cancelled" if self.cancelled else "completed")
