"""Make a child process die with its parent, even if the parent is killed with SIGKILL."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""
WATCH_S = 1.0


def die_with(parent: int) -> None:
    """Kill this process when the process `parent` ends.

    Call it first in the child, from its main thread. On Linux the kernel does it; elsewhere a thread polls.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), name="parent-watch", daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    tick = threading.Event()
    while os.getppid() == parent:
        tick.wait(WATCH_S)
    os.kill(os.getpid(), signal.SIGKILL)
