"""Progress of the compose test, with the seconds since it began."""

from __future__ import annotations

import time

STARTED = time.monotonic()


def report(line: str) -> None:
    """Print one line at once, so that it stands before what the commands print after it."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {line}", flush=True)
