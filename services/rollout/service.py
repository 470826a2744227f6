"""The rollout as a Faust application, for `python -m services.rollout` and for Faust's own command line."""

from __future__ import annotations

from functools import cache

import faust

from services.rollout.core.step import SERVICE, RolloutStep
from services.rollout.settings import RolloutSettings
from shared.adapters.access import Access
from shared.settings import load
from shared.stream.config import EngineConfig
from shared.stream.faust_host import add_skip_commands, host_engine
from shared.telemetry import configure_logging
from shared.topics import (
    DEAD_LETTERS,
    FEEDBACK_TALLIES,
    MODEL_CANARY,
    MODEL_ROLLOUT,
    MODEL_VERSIONS,
    OPERATOR_COMMANDS,
    OPERATOR_RESULTS,
    RESPONSE_SAMPLES,
    ROLLOUT_CHANGELOG,
)

CACHE_MB = 8
"""Size of the RocksDB read cache. The state is a few hundred records, and a few bytes per user of a canary."""

APPLICATION = f"loopwright-{SERVICE}"
"""The consumer group."""


def engine_config(settings: RolloutSettings) -> EngineConfig:
    """Return the engine's configuration. It has one partition, so one process decides; others stand by."""
    return EngineConfig(
        kafka=settings.kafka,
        application=APPLICATION,
        instance=settings.instance,
        inputs=(
            MODEL_VERSIONS.name,
            OPERATOR_COMMANDS.name,
            RESPONSE_SAMPLES.name,
            FEEDBACK_TALLIES.name,
        ),
        changelog=ROLLOUT_CHANGELOG.name,
        dead_letters=DEAD_LETTERS.name,
        outputs=frozenset(
            {MODEL_ROLLOUT.name, MODEL_CANARY.name, OPERATOR_COMMANDS.name, OPERATOR_RESULTS.name}
        ),
        service=SERVICE,
        dead_letter_limit=settings.dead_letter_limit,
        numbered_outputs=(MODEL_ROLLOUT.name,),
        partitions=1,
    )


def build(settings: RolloutSettings) -> faust.App:
    """Build the application. It connects to nothing until it is started."""
    app = host_engine(
        engine_config(settings),
        RolloutStep(settings.canary_policy),
        access=Access.from_settings(settings),
        host=settings.host,
        port=settings.port,
        data_dir=settings.data_dir,
        store=settings.store,
        store_cache_mb=CACHE_MB,
    )
    add_skip_commands(app, SERVICE, settings.kafka)
    return app


@cache
def _shared_app() -> faust.App:
    settings = load(RolloutSettings)
    configure_logging(SERVICE, settings.log_level)
    return build(settings)


def __getattr__(name: str) -> faust.App:
    """Build `app` when Faust's command line asks for it, because importing this module must not read settings.

    It asks more than once, and a process can claim its instance only once.
    """
    if name == "app":
        return _shared_app()
    raise AttributeError(name)
