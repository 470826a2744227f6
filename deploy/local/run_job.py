"""Programs that set-up runs to their end: followed line by line, ended with this process however it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from deploy.local.processes import Program, spawn, terminate

LOOK_SECONDS = 0.1
END_SECONDS = 5


def run_job(program: Program, folder: Path, heard: Callable[[str], None] = lambda _: None) -> tuple[int, str]:
    """Its exit status and all it printed, which stays in `folder` until the next time; `heard` gets each line at once.
    If `heard` raises, or a signal does, the program is stopped first."""
    log = folder / f"{program.name}.log"
    log.unlink(missing_ok=True)
    child = spawn(program, folder=folder, log=log)
    try:
        with log.open(errors="replace") as lines:
            while True:
                ended = child.poll() is not None
                for line in lines:
                    heard(line.rstrip())
                if ended:
                    return child.returncode, log.read_text(errors="replace")
                time.sleep(LOOK_SECONDS)
    except BaseException:
        terminate(child, seconds=END_SECONDS)
        raise
