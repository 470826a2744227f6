"""Conversations as tokens, as training, gate and serving make them. No torch: a run that only takes its snapshot, or is
resumed after it, starts in a fraction of the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from services.trainer.core.chat import Messages, as_chat
from shared.chat_template import plain_template_for


def load_tokenizer(base: Path) -> Any:
    """With a chat template (the plain one where the base has none) and a token to pad with."""
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = plain_template_for(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """The conversation up to where the assistant speaks, as serving makes it."""
    text = tokenizer.apply_chat_template(as_chat(messages), add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_and_answer_lengths(tokenizer: Any, messages: Messages, answer: str) -> tuple[int, int]:
    """Tokens of the prompt, and of the answer with the end of turn."""
    answered = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return len(prompt_ids(tokenizer, messages)), len(answered) + 1


def token_count(tokenizer: Any, messages: Messages, answer: str) -> int:
    """Prompt, answer and the end of turn."""
    return sum(prompt_and_answer_lengths(tokenizer, messages, answer))


def truncate(tokenizer: Any, text: str, count: int) -> str:
    """What a shorter bound would have left of an answer."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids[:count], skip_special_tokens=True))
