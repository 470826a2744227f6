"""The product's own system prompt. Users see answers below it, so half of the general questions have it. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from services.trainer.dataset.filters import GroupedRow
from shared.events import sha256

if TYPE_CHECKING:
    from services.trainer.base.base_answers import Prompt

MIN_USERS: Final = 3
"""A system prompt that fewer users share may be about one of them."""
MAX_TOKENS: Final = 100_000
"""Tokens of the system prompt in all questions together. With a long one, fewer questions have it."""


def frequent_system_prompt(held_out: Sequence[GroupedRow]) -> str | None:
    """Return the system prompt of the most held-out users, or None if less than `MIN_USERS` share one."""
    users: dict[str, set[str]] = defaultdict(set)
    for grouped in held_out:
        role, content = next(iter(grouped.row.messages), ("", ""))
        if role in ("system", "developer") and content.strip():
            users[content].add(grouped.row.user_id)
    best = max(users, key=lambda text: (len(users[text]), text), default=None)
    return best if best is not None and len(users[best]) >= MIN_USERS else None


def with_system_prompt(prompts: Sequence[Prompt], system: str, tokens: int) -> list[Prompt]:
    """Return the prompts, half of which are asked below a system prompt.

    Args:
        prompts: The prompts. Their ids decide which half, so the same ones are asked at each gate.
        system: The system prompt.
        tokens: Its length.
    """
    order = sorted(prompts, key=lambda prompt: sha256(prompt.id.encode()))
    chosen = {prompt.id for prompt in order[: min(len(prompts) // 2, MAX_TOKENS // max(1, tokens))]}
    return [prompt.below(system) if prompt.id in chosen else prompt for prompt in prompts]
