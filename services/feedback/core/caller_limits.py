"""Limits of requests per minute: of a user, of an API key, and of a response that pages send feedback on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A limit of requests per minute."""

    counted: str
    """What is counted: the name of the counter."""
    per_minute: int
    text: str
    """The limit in words."""


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """The limits that a deployment sets on callers."""

    key_per_minute: int
    token_per_minute: int

    def of(self, key_id: str | None, token_response: str | None) -> tuple[RateLimit, ...]:
        """Return the limits of a request: of its key, or of the response that its browser token is for.

        A page can show its token to anybody, so all tokens of a response share one limit. Callers without keys have
        none.
        """
        if token_response is not None:
            return (
                RateLimit(
                    f"token/{token_response}",
                    self.token_per_minute,
                    f"pages may send {self.token_per_minute} events on one response per minute",
                ),
            )
        if key_id is not None:
            return (
                RateLimit(
                    f"key/{key_id}",
                    self.key_per_minute,
                    f"one API key may send {self.key_per_minute} events and responses per minute",
                ),
            )
        return ()
