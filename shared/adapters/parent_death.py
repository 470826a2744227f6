"""A child process that does not outlive its parent, also when the parent is killed with -9."""

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
    """Called first thing in the child, from its main thread. Where the kernel offers nothing, a thread watches."""
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
