"""Bookkeeping of the transformers engine: accepted requests, the rows of a batch, and which requests share a batch."""

from __future__ import annotations

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
from shared.events import MAX_TEXT, Usage

Decode = Callable[[list[int]], str]


class BatchRow:
    """One choice that is being generated: one row of a batch. Only the engine's thread uses it."""

    def __init__(self, generation: QueuedGeneration, index: int, decode: Decode) -> None:
        self.generation = generation
        self.index = index
        self.token_count = 0
        self.finish_reason: FinishReason | None = None
        self._detokenizer = IncrementalDetokenizer(decode, generation.stop_strings)

    @property
    def text(self) -> str:
        """Text sent to the listener so far."""
        return self._detokenizer.text

    def push(self, token: int, eos_token_ids: frozenset[int]) -> None:
        """Add the row's next token and send the text that becomes final with it.

        Tokens after the row's end are ignored: the batch pads a finished row until its last row has finished.
        """
        if self.finish_reason is not None:
            return
        self.token_count += 1
        self.generation.note_token()
        new_text = "" if token in eos_token_ids else self._detokenizer.push(token)
        if self.generation.cancelled:
            self.finish_reason = "cancelled"
        elif token in eos_token_ids or self._detokenizer.stopped:
            self.finish_reason = "stop"
        elif self.token_count >= self.generation.max_tokens or self._detokenizer.length >= MAX_TEXT:
            self.finish_reason = "length"
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
        self.rows: list[BatchRow] = []
        self.queued_at = time.monotonic()
        self.cancelled = False
        self._listener = listener
        self._first_token_at: float | None = None
        self._ended = False
        self._lock = threading.Lock()

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Requests with equal keys can share a batch: same version, same sampling."""
        sampling = self.request.sampling
        if sampling.temperature == 0:
            return (self.request.version,)
        return (self.request.version, sampling.temperature, sampling.top_p, sampling.seed)

    @property
    def needs_own_batch(self) -> bool:
        """Whether the request is sampled with a seed: torch's random numbers depend on the whole batch."""
        return self.request.sampling.temperature > 0 and self.request.sampling.seed is not None

    def start_rows(self, decode: Decode) -> list[BatchRow]:
        """Create and return one row per choice."""
        self.rows = [BatchRow(self, index, decode) for index in range(self.request.n)]
        return self.rows

    def cancel(self) -> None:
        """Let the rows end with their next token. A request that still waits never starts."""
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
        """End the request if its rows have all finished, even if other rows of the batch have not."""
        if not self._ended and self.rows and all(row.finish_reason is not None for row in self.rows):
            self.end("cancelled" if self.cancelled else "completed")


def select_batch(
    waiting: Sequence[QueuedGeneration], max_rows: int, max_tokens: int
) -> list[QueuedGeneration]:
    """Return the oldest request, and those after it that can share its batch.

    Requests are added in order as long as the batch stays within `max_rows` rows and `max_tokens` tokens, padding
    included. The oldest request is taken even if it exceeds these limits, so none waits forever.
    """
    batch: list[QueuedGeneration] = []
    rows = longest_prompt = longest_answer = 0
    for generation in waiting:
        if batch and (batch[0].needs_own_batch or generation.batch_key != batch[0].batch_key):
            continue
        new_rows = rows + generation.request.n
        new_prompt = max(longest_prompt, len(generation.prompt))
        new_answer = max(longest_answer, generation.max_tokens)
        if batch and (new_rows > max_rows or new_rows * (new_prompt + new_answer) > max_tokens):
            continue
        batch.append(generation)
        rows, longest_prompt, longest_answer = new_rows, new_prompt, new_answer
    return batch
