"""Entry point of the rollout: `python -m services.rollout`, or `... recover` (`shared/stream/recovery.py`).

Its parts are built in `service.py`.
"""

from __future__ import annotations

import argparse

from services.rollout.core.numbering import RolloutNumbering
from services.rollout.core.step import SERVICE
from services.rollout.service import APPLICATION, build, engine_config
from services.rollout.settings import RolloutSettings
from shared.entry_point import run_service
from shared.settings import load
from shared.stream.faust_host import run_worker
from shared.stream.recovery import add_recover_command, run_recover


def run(settings: RolloutSettings) -> None:
    """Run the Faust application until a signal stops it."""
    run_worker(build(settings), settings.log_level)


def main() -> None:
    """Run the service."""
    parser = argparse.ArgumentParser(prog="python -m services.rollout", description="Run the rollout.")
    add_recover_command(parser.add_subparsers(dest="command", metavar="COMMAND"), APPLICATION)
    options = parser.parse_args()
    if options.command == "recover":
        run_recover(options, lambda: engine_config(load(RolloutSettings)), RolloutNumbering())
        return
    run_service(SERVICE, RolloutSettings, run)


if __name__ == "__main__":
    main()
