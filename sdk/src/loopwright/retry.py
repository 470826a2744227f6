"""When a request is tried again, and how long to wait before. Pure: the clients do the waiting."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from tenacity import RetryCallState

TRY_AGAIN = frozenset({429, 503})
"""Statuses by which a service asks to be asked again. After a 503 the thing may have been done all the same."""


@dataclass(frozen=True, slots=True)
class Retry:
    """`attempts` in all. Waits grow from `first_wait_s` by doubling, with jitter, up to `longest_wait_s`.

    A `Retry-After` of the service comes before that, and is cut at `longest_wait_s` too.
    """

    attempts: int = 6
    first_wait_s: float = 0.25
    longest_wait_s: float = 15.0

    def wait(self, state: RetryCallState) -> float:
        """Seconds before the next attempt (tenacity's `wait`)."""
        told = retry_after(_answer(state), datetime.now(UTC))
        if told is not None:
            return min(told, self.longest_wait_s)
        grown = min(self.first_wait_s * 2.0 ** (state.attempt_number - 1), self.longest_wait_s)
        return grown * random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients, hides nothing


def worth_repeating(repeatable: bool, state: RetryCallState) -> bool:
    """Whether another attempt may help and cannot do the thing twice (tenacity's `retry`).

    What is not `repeatable` is sent again only if it never arrived, or was refused for there being too many.
    """
    answer = _answer(state)
    if answer is not None:
        return answer.status_code in TRY_AGAIN and (repeatable or answer.status_code == 429)
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return True
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return False
    return repeatable and isinstance(error, httpx.TransportError)


def last_answer(state: RetryCallState) -> httpx.Response:
    """When the attempts are used up, the last answer or error is the caller's (tenacity's `retry_error_callback`)."""
    assert state.outcome is not None
    answer: httpx.Response = state.outcome.result()
    return answer


def retry_after(response: httpx.Response | None, now: datetime) -> float | None:
    """Seconds that the answer's `Retry-After` asks for, as seconds or as a date; None if it says nothing readable."""
    value = response.headers.get("retry-after") if response is not None else None
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (moment - now).total_seconds())


def _answer(state: RetryCallState) -> httpx.Response | None:
    if state.outcome is None or state.outcome.failed:
        return None
    result = state.outcome.result()
    return result if isinstance(result, httpx.Response) else None
