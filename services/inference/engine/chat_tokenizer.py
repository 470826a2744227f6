"""The base model's tokenizer and chat template, without torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from shared.chat_template import plain_template_for
from shared.errors import Misconfigured, Rejected
from shared.events import Message

PLAIN_STOP_STRINGS = ("\nUser:", "\nSystem:", "\nAssistant:")
"""A base that was not trained to chat may not end its turn, but continues with the next speaker's line."""


class ChatTokenizer:
    """Conversations to token ids, and token ids to text. Thread-safe.

    Args:
        folder: Files of the base model.
        max_context: Limit of prompt and answer together, in tokens. A smaller limit of the model takes precedence.

    Raises:
        Misconfigured: if the folder has no usable tokenizer or configuration.

    """

    def __init__(self, folder: Path, max_context: int) -> None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise Misconfigured(f"the tokenizer in {folder} cannot be loaded: {error}") from error
        self._tokenizer: PreTrainedTokenizerBase = tokenizer
        # Some tokenizers keep the state of an encoding in themselves.
        self._lock = threading.Lock()
        self.max_context = min(max_context, int(getattr(config, "max_position_embeddings", max_context)))
        self.uses_plain_template = self._tokenizer.chat_template is None
        if self.uses_plain_template:
            self._tokenizer.chat_template = plain_template_for(self._tokenizer)
        eos = self._tokenizer.eos_token_id
        self.eos_token_ids: frozenset[int] = frozenset() if eos is None else frozenset([int(eos)])
        pad = self._tokenizer.pad_token_id
        self.pad_token_id = int(pad if pad is not None else eos or 0)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Stop strings that the template needs."""
        return PLAIN_STOP_STRINGS if self.uses_plain_template else ()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the conversation, up to where the answer begins.

        Templates do not know the role `developer`; it is rendered as `system`.

        Raises:
            Rejected: if the model's own template refuses the conversation.

        """
        turns = [
            {"role": "system" if message.role == "developer" else message.role, "content": message.content}
            for message in messages
        ]
        try:
            with self._lock:
                rendered = self._tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, tokenize=False
                )
                return [
                    int(token) for token in self._tokenizer(rendered, add_special_tokens=False)["input_ids"]
                ]
        except TemplateError as error:
            raise Rejected(f"the model's chat template refuses this conversation: {error}") from error

    def decode(self, tokens: list[int]) -> str:
        """Return the text without special tokens. Bytes that form no complete character become U+FFFD."""
        return str(
            self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
