"""Entry point of the processor: `python -m services.processor`. Its parts are built in `service.py`."""

from __future__ import annotations

from services.processor.core.wire import SERVICE
from services.processor.service import build
from services.processor.settings import ProcessorSettings
from shared.entry_point import run_service
from shared.stream.faust_host import run_worker


def run(settings: ProcessorSettings) -> None:
    """Run the Faust application until a signal stops it."""
    run_worker(build(settings), settings.log_level)


def main() -> None:
    """Run the service."""
    run_service(SERVICE, ProcessorSettings, run)


if __name__ == "__main__":
    main()
