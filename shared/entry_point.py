"""The shape of every service's entry point: settings, logging, run, one line for an expected error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import structlog

from shared.errors import LoopwrightError
from shared.settings import Settings, load
from shared.telemetry import configure_logging

S = TypeVar("S", bound=Settings)


def run_service(name: str, settings_type: type[S], run: Callable[[S], None]) -> None:
    """Load the settings, log them with secrets masked, and call `run`, which blocks until the service stops.

    Exits with status 1 and one line on standard error if it raises a `LoopwrightError`; the message says what to do.
    """
    try:
        settings = load(settings_type)
    except LoopwrightError as error:
        sys.exit(f"{name}: {error}")
    configure_logging(name, settings.log_level)
    log = structlog.get_logger()
    log.info("starting", **settings.masked())
    try:
        run(settings)
    except LoopwrightError as error:
        log.critical("stopped", code=error.code, error=str(error))
        sys.exit(f"{name}: {error}")
