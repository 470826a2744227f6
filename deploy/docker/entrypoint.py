"""Run a module as PID 1 of a container: `python entrypoint.py MODULE`.

PID 1 gets no default signal handlers, and the services install theirs only after their imports. Until then this script
handles SIGTERM and SIGINT, so that a starting container stops at once. `init: true` would do the same, but not every
engine has an init.
"""

from __future__ import annotations

import runpy
import signal
import sys
from types import FrameType


def exit_on_signal(number: int, _: FrameType | None) -> None:
    """Exit at once; nothing is open yet."""
    sys.exit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, exit_on_signal)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
