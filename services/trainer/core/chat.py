"""Conversations as (role, content) pairs, and as chat templates take them."""

from __future__ import annotations

from collections.abc import Sequence

Messages = Sequence[tuple[str, str]]
"""(role, content) in order."""


def as_chat(messages: Messages) -> list[dict[str, str]]:
    """As chat templates take a conversation."""
    return [{"role": role, "content": content} for role, content in messages]
