"""Keys of everything that services keep in Redis. Redis may lose any of it at any moment.

Ids from callers may contain `:`. They come last in a key, or `join_ids` joins them, so no two things share a key.
"""

from __future__ import annotations

from shared.composed_ids import join_ids


def run_progress(line: str) -> str:
    """Return the key of the line's `RunProgress` (`shared/live_status.py`)."""
    return f"loopwright:run:{line}"


def collected(line: str) -> str:
    """Return the key of the line's `CollectedStatus` (`shared/live_status.py`)."""
    return f"loopwright:collected:{line}"


def quarantine(line: str) -> str:
    """Return the key of the line's `QuarantineStatus` (`shared/live_status.py`)."""
    return f"loopwright:quarantine:{line}"


def identity(response_id: str, event_id: str, erasures: int) -> str:
    """Return the key of an accepted feedback event's content digest, which detects repetitions (best effort).

    `erasures` is how often the event's user was erased: what is sent after an erasure repeats nothing.
    """
    return f"loopwright:identity:{join_ids(response_id, event_id, str(erasures))}"


def rate_limit(service: str, caller: str, window: int) -> str:
    """Return the key that counts a caller's requests to a service in one time window."""
    return f"loopwright:rate:{service}:{window}:{caller}"
