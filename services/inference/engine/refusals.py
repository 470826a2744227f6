"""Why an engine refuses a request: the errors that every engine with a queue raises, in the same words."""

from __future__ import annotations

from typing import Final

from services.inference.core.generation_request import ContextExceeded
from shared.errors import Overloaded, Retryable, UnknownVersion

SHUT_DOWN: Final = "the replica shut down before it processed this request"
"""Why an accepted request ends as failed without an answer."""


def shutting_down() -> Retryable:
    """Return the error for a request that comes too late."""
    return Retryable("this replica is shutting down; send the request again")


def not_loaded(version: str) -> UnknownVersion:
    """Return the error for a version that accepts no requests."""
    return UnknownVersion(f"the version {version} is not loaded")


def queue_full(waiting: int) -> Overloaded:
    """Return the error for a request beyond the limit of waiting ones."""
    return Overloaded(f"{waiting} requests are waiting already; send the request again in a moment")


def context_exceeded(prompt_tokens: int, limit: int, cause: str = "") -> ContextExceeded:
    """Return the error for a prompt that leaves no room for an answer.

    Args:
        prompt_tokens: Tokens of the prompt.
        limit: Limit of prompt and answer together.
        cause: What sets the limit, if it is not the model.

    """
    return ContextExceeded(
        f"the conversation has {prompt_tokens} tokens, but the model accepts at most {limit - 1}{cause}; "
        "shorten the conversation"
    )
