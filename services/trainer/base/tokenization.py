"""The chat format of a base, which training, replay data and the gate share with serving.

Does not import torch, so a process that only takes a snapshot starts in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from services.trainer.core.chat import Messages
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


def prompt_and_answer_lengths(chat: ChatFormat, messages: Messages, answer: str) -> tuple[int, int]:
    """Return the tokens of the prompt, and of the answer with the end of the turn."""
    return len(chat.prompt_ids(messages)), len(chat.answer_ids(answer))


def token_count(chat: ChatFormat, messages: Messages, answer: str) -> int:
    """Return the tokens of a training row: prompt, answer and end of the turn."""
    return sum(prompt_and_answer_lengths(chat, messages, answer))


def why_unfit(chat: ChatFormat, messages: Messages, answers: Sequence[str], max_tokens: int) -> str | None:
    """Return why answers to a conversation cannot train on this base, or None.

    The chat template may refuse the conversation, or prompt and answer may have more than `max_tokens` tokens. The
    reason contains no text of the conversation.
    """
    try:
        prompt = len(chat.prompt_ids(messages))
    except TemplateRefused as refused:
        return f"chat template: {refused.reason}"
    longest = max(len(chat.answer_ids(answer)) for answer in answers)
    return "tokens: longer than the limit of a run" if prompt + longest > max_tokens else None


def truncate(chat: ChatFormat, text: str, max_tokens: int) -> str:
    """Return the first `max_tokens` tokens of an answer as text: the answer that a lower limit would have given."""
    return chat.decode(chat.answer_ids(text, ended=False)[:max_tokens]).strip()
