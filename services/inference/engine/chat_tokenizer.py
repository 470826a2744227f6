"""Conversations to tokens, and tokens to text. No torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer

from shared.chat_template import plain_for
from shared.errors import Misconfigured, Rejected

PLAIN_STOP_STRINGS = ("\nUser:", "\nSystem:", "\nAssistant:")
"""A base that was never taught to chat does not end its turn; the next speaker's line does."""


class ChatTokenizer:
    """The base's tokenizer. Thread-safe."""

    def __init__(self, folder: Path, max_context: int) -> None:
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise Misconfigured(f"the tokenizer in {folder} cannot be loaded: {error}") from error
        # Some tokenizers keep the state of an encoding in themselves.
        self._lock = threading.Lock()
        self.context = min(max_context, int(getattr(config, "max_position_embeddings", max_context)))
        self.plain = self._tokenizer.chat_template is None
        if self.plain:
            self._tokenizer.chat_template = plain_for(self._tokenizer)
        eos = self._tokenizer.eos_token_id
        self.eos: frozenset[int] = frozenset() if eos is None else frozenset([int(eos)])
        pad = self._tokenizer.pad_token_id
        self.pad = int(pad if pad is not None else eos or 0)

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings that the template needs."""
        return PLAIN_STOP_STRINGS if self.plain else ()

    def tokens(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """(role, text) turns -> token ids that end where the answer begins. Raises `Rejected` where the
        model's own template refuses the conversation. `developer` is `system` to the template."""
        messages = [
            {"role": "system" if role == "developer" else role, "content": text} for role, text in turns
        ]
        try:
            with self._lock:
                text = self._tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=False
                )
                return [int(t) for t in self._tokenizer(text, add_special_tokens=False)["input_ids"]]
        except TemplateError as error:
            raise Rejected(f"the model's chat template refuses this conversation: {error}") from error

    def decode(self, tokens: list[int]) -> str:
        """Text without special tokens; bytes that are no whole character show as U+FFFD."""
        return str(
            self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
