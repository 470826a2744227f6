"""Progress of the compose test, with the seconds since its start."""

from __future__ import annotations

import time

STARTED = time.monotonic()


def report(line: str) -> None:
    """Print one line and flush it, so that it precedes the output of later commands."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {line}", flush=True)
