"""Entry point of the rollout: `python -m services.rollout`. Its parts are built in `service.py`."""

from __future__ import annotations

import sys

import structlog

from services.rollout.core.step import SERVICE
from services.rollout.service import build
from services.rollout.settings import RolloutSettings
from shared.errors import LoopwrightError
from shared.settings import load
from shared.stream.faust_host import run_worker
from shared.telemetry import configure_logging


def main() -> None:
    """Read the settings, build the application and run it until a signal stops it."""
    try:
        settings = load(RolloutSettings)
    except LoopwrightError as error:
        sys.exit(f"{SERVICE}: {error}")
    configure_logging(SERVICE, settings.log_level)
    structlog.get_logger().info("starting", **settings.masked())
    run_worker(build(settings), settings.log_level)


if __name__ == "__main__":
    main()
