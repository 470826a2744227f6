"""Rows of a run as tokens: a prompt, an answer to it, and for a preference the answer that was rejected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from services.trainer.core.chat import Messages
from services.trainer.dataset.filters import Row
from shared.chat_format import ChatFormat
from shared.feedback_kinds import Objective

Tokens: TypeAlias = tuple[int, ...]
TrainedAs: TypeAlias = Objective | Literal["replay"]
"""What a row trains: an objective of users' feedback, or to answer like the base."""


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    """A sequence that the model reads: a prompt and an answer. Only the answer's tokens are predicted.

    Both have at least one token, except that a prompt may have an empty answer.
    """

    prompt: Tokens
    answer: Tokens

    @property
    def ids(self) -> Tokens:
        """Return all tokens."""
        return self.prompt + self.answer


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """A row that trains.

    An answer ends with the end of the turn, unless it is truncated: trained with one, the model would learn to stop in
    mid-sentence.
    """

    name: str
    """Name of the feedback behind the row, for diagnostics."""
    objective: TrainedAs
    prompt: Tokens
    answer: Tokens
    """The answer: of a preference the chosen one, of a judgement the judged one."""
    rejected: Tokens = ()
    """The rejected answer of a preference."""
    liked: bool = True
    """The label of a judgement."""

    @property
    def sequences(self) -> tuple[AnsweredPrompt, ...]:
        """Return the sequences that the model reads for this row: two for a preference, else one."""
        answered = AnsweredPrompt(self.prompt, self.answer)
        if self.objective == "dpo":
            return (answered, AnsweredPrompt(self.prompt, self.rejected))
        return (answered,)

    @property
    def tokens(self) -> int:
        """Return the number of tokens of all sequences."""
        return sum(len(sequence.prompt) + len(sequence.answer) for sequence in self.sequences)

    @property
    def is_compared(self) -> bool:
        """Return whether its loss compares the likelihoods of its answers with those under the reference."""
        return self.objective in ("kto", "dpo")


def tokenize(chat: ChatFormat, row: Row) -> TokenizedRow:
    """Return a verified row as tokens."""
    return TokenizedRow(
        row.identity,
        row.objective,
        tuple(chat.prompt_ids(row.messages)),
        tuple(chat.answer_ids(row.answer, ended=not row.unended)),
        tuple(chat.answer_ids(row.original, ended=not row.original_unended))
        if row.objective == "dpo"
        else (),
        bool(row.label) if row.objective == "kto" else True,
    )


def sft_row(
    chat: ChatFormat, name: str, messages: Messages, answer: str, *, ended: bool = True
) -> TokenizedRow:
    """Return an answer to train on. `ended` is False if the answer is truncated."""
    return _answered(chat, name, "sft", messages, answer, ended=ended)


def replay_row(
    chat: ChatFormat, name: str, messages: Messages, answer: str, *, ended: bool = True
) -> TokenizedRow:
    """Return an answer of the base, to keep the base's distributions. `ended` is False if it is truncated."""
    return _answered(chat, name, "replay", messages, answer, ended=ended)


def _answered(
    chat: ChatFormat, name: str, objective: TrainedAs, messages: Messages, answer: str, *, ended: bool
) -> TokenizedRow:
    prompt, ids = chat.prompt_ids(messages), chat.answer_ids(answer, ended=ended)
    return TokenizedRow(name, objective, tuple(prompt), tuple(ids))


def longest(rows: Sequence[TokenizedRow]) -> int:
    """Return the tokens of the largest row, which a micro-batch cannot be smaller than; 0 without rows."""
    return max((row.tokens for row in rows), default=0)
