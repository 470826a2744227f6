"""How a conversation becomes text for bases without a chat template: training and serving must agree."""

from __future__ import annotations

from typing import Final

PLAIN: Final = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""A line `System:`, `User:` or `Assistant:` per message, then `Assistant:` (jinja2)."""
