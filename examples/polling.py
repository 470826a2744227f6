"""Wait for a condition that is checked through the public APIs."""

from __future__ import annotations

import time
from collections.abc import Callable

from loopwright import LoopwrightError

POLL_S = 1.0


def wait_until(
    condition: Callable[[], bool], timeout_s: float, problem: str, failure: type[Exception]
) -> None:
    """Check `condition` once a second until it is true. A `LoopwrightError` counts as false.

    Args:
        condition: The check.
        timeout_s: Seconds to wait.
        problem: What is wrong if the condition does not become true, and where to look; part of the message.
        failure: Class of the exception to raise then.

    Raises:
        Exception: of class `failure`, after `timeout_s`; the message includes the last `LoopwrightError`.

    """
    deadline, last_error = time.monotonic() + timeout_s, ""
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except LoopwrightError as error:
            last_error = f" ({error})"
        time.sleep(POLL_S)
    raise failure(f"after {timeout_s:.0f} s {problem}{last_error}")
