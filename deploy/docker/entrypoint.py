"""Run a module as a container's first process, stoppable while it still imports: `python entrypoint.py MODULE`.

The kernel keeps from the first process of a container every signal that it has no handler for, and the services set
theirs when they listen. Until then this one ends them. `init: true` would do it too, where the engine has an init.
"""

from __future__ import annotations

import runpy
import signal
import sys
from types import FrameType


def stopped(number: int, _: FrameType | None) -> None:
    """Nothing is open yet that would have to be closed."""
    sys.exit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopped)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
