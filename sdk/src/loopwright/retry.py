"""Retry policy of the clients: which requests are sent again, and after how long. No I/O; the clients wait."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

import httpx
from tenacity import RetryCallState

RETRYABLE_STATUSES = frozenset({429, 503})
"""Statuses after which a request is sent again. After a 503 it may have been executed nevertheless."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Retry policy. Waits double with each attempt, with jitter. A `Retry-After` of the service takes precedence."""

    attempts: int = 6
    """Maximum number of attempts, including the first."""
    first_wait_s: float = 0.25
    """Longest wait before the second attempt, in seconds."""
    longest_wait_s: float = 15.0
    """Longest wait before any attempt, in seconds. It also limits `Retry-After`."""

    def wait(self, state: RetryCallState) -> float:
        """Return the wait before the next attempt, in seconds (tenacity's `wait`)."""
        requested = retry_after(_response(state), datetime.now(timezone.utc))
        if requested is not None:
            return min(requested, self.longest_wait_s)
        return self.backoff(state.attempt_number)

    def backoff(self, attempt: int) -> float:
        """Return the wait after this attempt, counted from 1, if the service asked for none, in seconds."""
        wait = min(self.first_wait_s * 2.0 ** (attempt - 1), self.longest_wait_s)
        return wait * random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients, hides nothing


def should_retry(state: RetryCallState) -> bool:
    """Return whether another attempt may help (tenacity's `retry`). Requests have ids, so none is executed twice."""
    response = _response(state)
    if response is not None:
        return response.status_code in RETRYABLE_STATUSES
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return False
    return isinstance(error, httpx.TransportError)


def last_response(state: RetryCallState) -> httpx.Response:
    """Return the last response, or raise the last error (tenacity's `retry_error_callback`)."""
    assert state.outcome is not None
    response: httpx.Response = state.outcome.result()
    return response


def retry_after(response: httpx.Response | None, now: datetime) -> float | None:
    """Return the wait that the `Retry-After` header asks for, in seconds, or None if it is missing or unreadable."""
    value = response.headers.get("retry-after") if response is not None else None
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        time = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (time - now).total_seconds())


def _response(state: RetryCallState) -> httpx.Response | None:
    if state.outcome is None or state.outcome.failed:
        return None
    result = state.outcome.result()
    return result if isinstance(result, httpx.Response) else None
