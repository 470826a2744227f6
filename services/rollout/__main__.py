"""`python -m services.rollout`"""

from __future__ import annotations

import sys

import structlog

from services.rollout.service import build
from services.rollout.settings import RolloutSettings
from shared.errors import LoopwrightError
from shared.settings import load
from shared.stream.faust_host import run_worker
from shared.telemetry import configure_logging


def main() -> None:
    """Parses settings, builds the real parts once, runs."""
    try:
        settings = load(RolloutSettings)
    except LoopwrightError as error:
        sys.exit(f"rollout: {error}")
    configure_logging("rollout", settings.log_level)
    structlog.get_logger().info("starting", **settings.masked())
    run_worker(build(settings), settings.log_level)


if __name__ == "__main__":
    main()
