"""Run a program that dies with its parent, even if the parent is killed with SIGKILL.

    python die_with_parent.py PROGRAM.json        {"argv": [...], "env": {...}, "cwd": "..."}

The process becomes the program by exec, so the parent knows its pid. On Linux the kernel kills it when the parent
dies. Elsewhere a watcher process, forked before the exec, polls the parent.

The program is read from a file, because supervisord's configuration cannot quote every path. The script runs with
`python -I -S` and imports only the standard library, so that it starts within milliseconds. For a Python process that
can import this repository, `shared.adapters.parent_death` does the same without exec.
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

PARENT_PID_VARIABLE = "LOOPWRIGHT_PARENT_PID"
"""Environment variable with the pid of the process that starts this script; the script sets it for its program."""

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""
ORPHANED = 113
"""Exit status if the parent died before this script was ready."""
POLL_SECONDS = 0.2


def set_death_signal(parent: int) -> None:
    """Have Linux send SIGKILL to this process when the thread that forked it ends. The setting survives exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # If the parent died before the call, no signal will come.
    if os.getppid() != parent:
        sys.exit(ORPHANED)


def fork_watcher(parent: int) -> None:
    """Fork a child that kills this process once `parent` has ended, for systems without a death signal."""
    target = os.getpid()
    if os.getppid() != parent:
        sys.exit(ORPHANED)
    if os.fork() != 0:
        return
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Readers of the program's output must see its end when the program ends, so the watcher must not hold the pipe.
    os.closerange(0, 1024)
    while os.getppid() == target:
        if not process_exists(parent):
            os.kill(target, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    os._exit(0)


def process_exists(pid: int) -> bool:
    """Return whether a process has this pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def exec_program(program: dict[str, Any], *, use_kernel: bool) -> NoReturn:
    """Tie this process to its parent, then replace it with the program."""
    parent = int(os.environ.get(PARENT_PID_VARIABLE) or os.getppid())
    if use_kernel:
        set_death_signal(parent)
    else:
        fork_watcher(parent)
    env = {**os.environ, **program.get("env", {}), PARENT_PID_VARIABLE: str(os.getpid())}
    if program.get("cwd"):
        os.chdir(program["cwd"])
    argv = program["argv"]
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        sys.exit(f"cannot run {argv[0]}: {error.strerror}")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--watch"]
    exec_program(
        json.loads(Path(arguments[0]).read_bytes()),
        use_kernel=sys.platform.startswith("linux") and "--watch" not in sys.argv[1:],
    )
