"""The names under which live figures lie in Redis. All of it may vanish at any moment."""

from __future__ import annotations


def run_progress(line: str) -> str:
    """JSON: {run_id, stage, step, steps, loss, tokens_per_s, share, eta_s, updated_at}"""
    return f"loopwright:run:{line}"


def collected(line: str) -> str:
    """JSON: {usable, needed, users, users_needed, examples, held, batches, reason, updated_at}: the threshold bar."""
    return f"loopwright:collected:{line}"


def quarantine(line: str) -> str:
    """JSON: {held: [[response_id, event_id, reason]], total, updated_at}: what could be released, no texts."""
    return f"loopwright:quarantine:{line}"


def receipt(response_id: str, event_id: str) -> str:
    """The outcome record's JSON."""
    return f"loopwright:receipt:{response_id}:{event_id}"


def identity(response_id: str, event_id: str) -> str:
    """The content digest of an accepted feedback event: the door's best-effort duplicate check."""
    return f"loopwright:identity:{response_id}:{event_id}"


def rate(door: str, caller: str, window: int) -> str:
    return f"loopwright:rate:{door}:{caller}:{window}"
