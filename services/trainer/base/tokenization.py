"""Conversations as tokens, the same way in training, gate and serving.

Does not import torch, so a process that only takes a snapshot starts in a fraction of the time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from services.trainer.core.chat import Messages, as_chat
from shared.chat_template import plain_template_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base, with the plain chat template if it has none, and with a padding token."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = plain_template_for(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    loaded: PreTrainedTokenizerBase = tokenizer
    return loaded


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Return the tokens of a conversation up to the assistant's turn, as serving builds them."""
    text = tokenizer.apply_chat_template(as_chat(messages), add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_and_answer_lengths(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, answer: str
) -> tuple[int, int]:
    """Return the tokens of the prompt, and of the answer with the end of the turn."""
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return len(prompt_ids(tokenizer, messages)), len(ids) + 1


def token_count(tokenizer: PreTrainedTokenizerBase, messages: Messages, answer: str) -> int:
    """Return the tokens of a training row: prompt, answer and end of the turn."""
    return sum(prompt_and_answer_lengths(tokenizer, messages, answer))


def truncate(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int) -> str:
    """Return the first `max_tokens` tokens of an answer as text: the answer that a lower limit would have given."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids[:max_tokens], skip_special_tokens=True))
