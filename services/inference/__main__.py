"""Entry point of inference: `python -m services.inference`. The parts are built in `service.py`."""

from __future__ import annotations

import sys

import structlog

from services.inference.service import SERVICE, InferenceService
from services.inference.settings import InferenceSettings
from shared.adapters.http import stop_gracefully
from shared.errors import LoopwrightError
from shared.settings import load
from shared.telemetry import configure_logging


def main() -> None:
    """Read the settings, build the service and run it until a signal stops it."""
    try:
        settings = load(InferenceSettings)
        configure_logging(SERVICE, settings.log_level)
        structlog.get_logger().info("starting", **settings.masked())
        service = InferenceService(settings)
        stop_gracefully(service.server)
        service.run()
    except LoopwrightError as error:
        sys.exit(f"{SERVICE}: {error}")


if __name__ == "__main__":
    main()
