"""Conversations: as (role, content) pairs, and in the form that chat templates take."""

from __future__ import annotations

from collections.abc import Sequence

Messages = Sequence[tuple[str, str]]
"""(role, content) pairs in order."""


def as_chat(messages: Messages) -> list[dict[str, str]]:
    """Return a conversation in the form that chat templates take."""
    return [{"role": role, "content": content} for role, content in messages]
