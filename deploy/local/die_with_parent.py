"""Becomes another program that dies with its parent, also when the parent is killed -9.

    python die_with_parent.py PROGRAM.json        {"argv": [...], "env": {...}, "cwd": "..."}

The program takes this process over by exec, so its pid is the one the parent knows. On Linux the kernel kills
it at the parent's death. Elsewhere a watcher, forked before the exec, looks five times a second.

It reads a file rather than arguments because supervisor's configuration has no quoting that survives every
path. It runs as `python -I -S` with the standard library alone: it must start in milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

PARENT = "LOOPWRIGHT_TETHER"
"""The pid that the parent wrote down before it started us; each tether hands its own to its children."""

PR_SET_PDEATHSIG = 1
ORPHANED = 113


def ask_the_kernel(parent: int) -> None:
    """Linux: SIGKILL for this process when the thread that forked it ends. Survives exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # The parent may have died before the request; then no signal will ever come.
    if os.getppid() != parent:
        sys.exit(ORPHANED)


def fork_a_watcher(parent: int) -> None:
    """Elsewhere: a child that kills this process (its own parent) once `parent` is gone."""
    target = os.getpid()
    if os.getppid() != parent:
        sys.exit(ORPHANED)
    if os.fork() != 0:
        return
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Whoever reads the program's output must see its end when the program ends, not when the watcher does.
    os.closerange(0, 1024)
    while os.getppid() == target:
        if not exists(parent):
            os.kill(target, signal.SIGKILL)
        time.sleep(0.2)
    os._exit(0)


def exists(pid: int) -> bool:
    """Whether a process has this pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def become(program: dict[str, Any], *, kernel: bool) -> NoReturn:
    """Tie this process to its parent, then turn into the program."""
    parent = int(os.environ.get(PARENT) or os.getppid())
    if kernel:
        ask_the_kernel(parent)
    else:
        fork_a_watcher(parent)
    env = {**os.environ, **program.get("env", {}), PARENT: str(os.getpid())}
    if program.get("cwd"):
        os.chdir(program["cwd"])
    argv = program["argv"]
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        sys.exit(f"cannot run {argv[0]}: {error.strerror}")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--watch"]
    become(
        json.loads(Path(arguments[0]).read_bytes()),
        kernel=sys.platform.startswith("linux") and "--watch" not in sys.argv[1:],
    )
