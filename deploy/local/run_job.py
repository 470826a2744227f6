"""Run a program to completion, following its output. The program dies with this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from deploy.local.processes import Program, spawn, terminate

POLL_SECONDS = 0.1
STOP_SECONDS = 5


def run_job(
    program: Program, folder: Path, on_line: Callable[[str], None] = lambda _: None
) -> tuple[int, str]:
    """Run the program and return its exit status and output.

    Args:
        program: What to run.
        folder: Folder for its launch file and its log; the log is kept until the next run.
        on_line: Called with each line of output. If it raises, the program is stopped first.

    """
    log = folder / f"{program.name}.log"
    log.unlink(missing_ok=True)
    child = spawn(program, folder=folder, log=log)
    try:
        with log.open(errors="replace") as lines:
            while True:
                ended = child.poll() is not None
                for line in lines:
                    on_line(line.rstrip())
                if ended:
                    return child.returncode, log.read_text(errors="replace")
                time.sleep(POLL_SECONDS)
    except BaseException:
        terminate(child, seconds=STOP_SECONDS)
        raise
