"""Entry point of the rollout: `python -m services.rollout`. Its parts are built in `service.py`."""

from __future__ import annotations

from services.rollout.core.step import SERVICE
from services.rollout.service import build
from services.rollout.settings import RolloutSettings
from shared.entry_point import run_service
from shared.stream.faust_host import run_worker


def run(settings: RolloutSettings) -> None:
    """Run the Faust application until a signal stops it."""
    run_worker(build(settings), settings.log_level)


def main() -> None:
    """Run the service."""
    run_service(SERVICE, RolloutSettings, run)


if __name__ == "__main__":
    main()
