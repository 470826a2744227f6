"""Waiting for something that is looked at from outside, through doors that may be busy."""

from __future__ import annotations

import time
from collections.abc import Callable

from loopwright import LoopwrightError

POLL_S = 1.0


def wait_until(ready: Callable[[], bool], seconds: float, otherwise: str, failure: type[Exception]) -> None:
    """Asks `ready` once a second. Raises `failure` after so many seconds: what stands still, and the last error."""
    deadline, last = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except LoopwrightError as error:
            last = f" ({error})"
        time.sleep(POLL_S)
    raise failure(f"after {seconds:.0f} s {otherwise}{last}")
