"""The chat format of a base, which training, replay data and the gate share with serving.

Loads no model. Importing transformers' tokenizers loads torch, though, so the service's process imports none of this.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import AutoTokenizer

from services.trainer.core.chat import Messages
from services.trainer.dataset.filters import Row
from shared.chat_format import ChatFormat, TemplateKwargs, TemplateRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base, with a padding token."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def load_chat(
    base: Path, template_kwargs: TemplateKwargs | None = None, today: date | None = None
) -> ChatFormat:
    """Load the tokenizer of a base and return its chat format. Arguments and errors are those of `ChatFormat`."""
    return ChatFormat(load_tokenizer(base), template_kwargs, today)


def is_rendered(chat: ChatFormat, messages: Messages) -> bool:
    """Return whether the base's template renders a conversation. Some refuse a system prompt."""
    try:
        chat.prompt_ids(messages)
    except TemplateRefused:
        return False
    return True


def prompt_and_answer_lengths(chat: ChatFormat, messages: Messages, answer: str) -> tuple[int, int]:
    """Return the tokens of the prompt, and of the answer with the end of the turn."""
    return len(chat.prompt_ids(messages)), len(chat.answer_ids(answer))


def token_count(chat: ChatFormat, messages: Messages, answer: str) -> int:
    """Return the tokens of a training row: prompt, answer and end of the turn."""
    return sum(prompt_and_answer_lengths(chat, messages, answer))


class RowTokens(NamedTuple):
    """Tokens of a row's prompt, and of each answer that it trains, with the end of the turn."""

    prompt: int
    answers: tuple[int, ...]
    """`answer`, and for a preference also `original`."""

    @property
    def all(self) -> int:
        """Tokens of all sequences that the row trains. Each answer has the prompt before it."""
        return len(self.answers) * self.prompt + sum(self.answers)


class TokenCounts:
    """Tokens of the rows of a snapshot on one base. Each distinct conversation and answer is tokenized once.

    Users ask the same and agree on answers, so a snapshot has far fewer distinct texts than rows.

    Args:
        chat: The chat format of the base.
        max_tokens: Most tokens of a prompt with one answer.

    """

    def __init__(self, chat: ChatFormat, max_tokens: int) -> None:
        self._chat = chat
        self._max_tokens = max_tokens
        self._prompts: dict[tuple[tuple[str, str], ...], int] = {}
        self._refused: dict[tuple[tuple[str, str], ...], str] = {}
        self._answers: dict[str, int] = {}

    def why_unfit(self, row: Row) -> str | None:
        """Count the tokens of a row. Return why it cannot train on this base, or None.

        The chat template may refuse the conversation, or prompt and answer may be too long together. The reason
        contains no text of the conversation.
        """
        self._read(row)
        if row.messages in self._refused:
            return f"chat template: {self._refused[row.messages]}"
        counts = self.of(row)
        is_too_long = counts.prompt + max(counts.answers) > self._max_tokens
        return "tokens: longer than the limit of a run" if is_too_long else None

    def of(self, row: Row) -> RowTokens:
        """Return the counts of a row that `why_unfit` was called for and that the chat template rendered."""
        return RowTokens(self._prompts[row.messages], tuple(self._answers[text] for text in _answers(row)))

    def _read(self, row: Row) -> None:
        """Tokenize what was not tokenized before."""
        if row.messages not in self._prompts and row.messages not in self._refused:
            try:
                self._prompts[row.messages] = len(self._chat.prompt_ids(row.messages))
            except TemplateRefused as refused:
                self._refused[row.messages] = refused.reason
        if row.messages not in self._refused:
            for text in _answers(row):
                if text not in self._answers:
                    self._answers[text] = len(self._chat.answer_ids(text))


def _answers(row: Row) -> tuple[str, ...]:
    return (row.answer, row.original) if row.objective == "dpo" else (row.answer,)


def truncate(chat: ChatFormat, text: str, max_tokens: int) -> str:
    """Return the first `max_tokens` tokens of an answer as text: the answer that a lower limit would have given."""
    return chat.decode(chat.answer_ids(text, ended=False)[:max_tokens]).strip()
