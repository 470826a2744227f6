"""The base model's tokenizer and chat template, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from shared.chat_format import ChatFormat, TemplateKwargs
from shared.chat_template import PLAIN_STOP_STRINGS
from shared.errors import Misconfigured
from shared.events import Message


class ChatTokenizer:
    """Conversations to token ids, and token ids to text. Thread-safe.

    Args:
        folder: Files of the base model.
        max_context: Limit of prompt and answer together, in tokens. A smaller limit of the model takes precedence.
        template_kwargs: Arguments of the chat template.

    Raises:
        Misconfigured: if the folder has no usable tokenizer or configuration.

    """

    def __init__(self, folder: Path, max_context: int, template_kwargs: TemplateKwargs | None = None) -> None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise Misconfigured(f"the tokenizer in {folder} cannot be loaded: {error}") from error
        self._chat = ChatFormat(tokenizer, template_kwargs)
        self.template_kwargs = self._chat.template_kwargs
        self.max_context = min(max_context, int(getattr(config, "max_position_embeddings", max_context)))
        self.eos_token_ids = self._chat.stop_ids
        self.pad_token_id = self._chat.pad_id
        self.special_ids = self._chat.special_ids

    def training_problem(self) -> str | None:
        """Return why this base cannot be trained with these prompts, with a remedy, or None. It can be served."""
        return self._chat.training_problem()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Stop strings that the template needs."""
        return PLAIN_STOP_STRINGS if self._chat.uses_plain_template else ()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of the conversation, up to where the answer begins.

        Raises:
            TemplateRefused: if the base's template refuses the conversation.

        """
        return self._chat.prompt_ids([(message.role, message.content) for message in messages])

    def control_text(self, text: str) -> str | None:
        """Return the first special token that a text spells out, or None."""
        return self._chat.control_text(text)

    def decode(self, tokens: list[int]) -> str:
        """Return the text without special tokens. Bytes that form no complete character become U+FFFD."""
        return self._chat.decode(tokens)
