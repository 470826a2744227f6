"""How a conversation becomes text for bases without a chat template: training and serving must agree."""

from __future__ import annotations

from typing import Any, Final

PLAIN: Final = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n' }}Assistant:{% endif %}"
)
"""A line `System:`, `User:` or `Assistant:` per message, then `Assistant:` (jinja2). An answer ends with the
tokenizer's end of text, so that training teaches where to stop."""


def plain_for(tokenizer: Any) -> str:
    """`PLAIN`, after the token that this tokenizer begins every text with, if it has one: it was trained so. What is
    made with it is tokenised without adding special tokens."""
    begins = bool(tokenizer("")["input_ids"])
    return ("{{ bos_token }}" if begins else "") + PLAIN
