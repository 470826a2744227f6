"""Entry point of the processor: `python -m services.processor [--workers N]`, or `... recover`.

The parts of a processor are built in `service.py`; `workers.py` runs several on one host. The command `recover` is in
`shared/stream/recovery.py`.
"""

from __future__ import annotations

import argparse
import os

from services.processor.core.numbering import BatchNumbering
from services.processor.core.wire import SERVICE
from services.processor.service import APPLICATION, build, engine_config
from services.processor.settings import ProcessorSettings
from services.processor.workers import PARENT_PID_VARIABLE, run_workers
from shared.adapters.parent_death import die_with
from shared.entry_point import run_service
from shared.settings import load, variable_of
from shared.stream.faust_host import run_worker
from shared.stream.recovery import add_recover_command, run_recover


def run(settings: ProcessorSettings) -> None:
    """Run the Faust application, or several processes of it, until a signal stops it."""
    if settings.workers > 1:
        run_workers(settings)
    else:
        run_worker(build(settings), settings.log_level)


def main() -> None:
    """Run the service."""
    if parent := os.environ.get(PARENT_PID_VARIABLE):
        die_with(int(parent))
    variable = variable_of(ProcessorSettings, "workers")
    parser = argparse.ArgumentParser(prog="python -m services.processor", description="Run the processor.")
    parser.add_argument(
        "--workers",
        metavar="N",
        help=f"Run N processes on this host; the default is {variable}, else 1.",
    )
    add_recover_command(parser.add_subparsers(dest="command", metavar="COMMAND"), APPLICATION)
    options = parser.parse_args()
    if options.command == "recover":
        run_recover(options, lambda: engine_config(load(ProcessorSettings)), BatchNumbering())
        return
    workers = options.workers
    if workers is not None:
        os.environ[variable] = workers
    run_service(SERVICE, ProcessorSettings, run)


if __name__ == "__main__":
    main()
