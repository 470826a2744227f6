"""Chat template for base models without one. Training and serving both use it, so they render the same prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n' }}Assistant:{% endif %}"
)
"""Jinja template: one line `Role: content` per message, then `Assistant:` for the model to continue.

Every answer ends with the end-of-text token, so training on it teaches the model where to stop.
"""

PLAIN_STOP_STRINGS: Final = ("\nUser:", "\nSystem:", "\nAssistant:")
"""A base that was not trained to chat may not end its turn, but continues with the next speaker's line."""


def plain_template_for(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return `PLAIN_TEMPLATE`, with `bos_token` in front if the tokenizer adds one to every text.

    Tokenize the rendered text with `add_special_tokens=False`; otherwise it would begin with two of them.
    """
    adds_bos = bool(tokenizer("")["input_ids"])
    return ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
