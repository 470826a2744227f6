"""Entry point of inference: `python -m services.inference`. Its parts are built in `service.py`."""

from __future__ import annotations

from services.inference.service import SERVICE, InferenceService
from services.inference.settings import InferenceSettings
from shared.adapters.http import stop_gracefully
from shared.entry_point import run_service


def run(settings: InferenceSettings) -> None:
    """Build the service and run it until a signal stops it."""
    service = InferenceService(settings)
    stop_gracefully(service.server)
    service.run()


def main() -> None:
    """Run the service."""
    run_service(SERVICE, InferenceSettings, run)


if __name__ == "__main__":
    main()
