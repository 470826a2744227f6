"""The processor as a Faust application, for `python -m services.processor` and for Faust's own command line."""

from __future__ import annotations

from functools import cache

import faust

from services.processor.api import add_live_view
from services.processor.core.erasure.process import ErasureConfig
from services.processor.core.step import ProcessorStep
from services.processor.core.wire import SERVICE
from services.processor.live_view.view import LiveView, TallyReader
from services.processor.settings import ProcessorSettings
from shared.adapters.access import Access
from shared.settings import load
from shared.stream.config import EngineConfig
from shared.stream.faust_host import add_skip_commands, host_engine
from shared.telemetry import configure_logging
from shared.topics import (
    CHAT_RESPONSES,
    DEAD_LETTERS,
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    OPERATOR_RESULTS,
    PROCESSOR_CHANGELOG,
    RESPONSE_SAMPLES,
    TRAINING_BATCHES,
)

APPLICATION = f"loopwright-{SERVICE}"
"""The consumer group."""


def engine_config(settings: ProcessorSettings) -> EngineConfig:
    """Return the engine's configuration.

    Responses are the first input: at the same append time they are processed before the feedback on them.
    """
    return EngineConfig(
        kafka=settings.kafka,
        application=APPLICATION,
        instance=settings.instance,
        inputs=(CHAT_RESPONSES.name, FEEDBACK_EVENTS.name, ERASURE_REQUESTS.name),
        changelog=PROCESSOR_CHANGELOG.name,
        dead_letters=DEAD_LETTERS.name,
        outputs=frozenset(
            {
                TRAINING_BATCHES.name,
                FEEDBACK_OUTCOMES.name,
                FEEDBACK_TALLIES.name,
                RESPONSE_SAMPLES.name,
                ERASURE_REPORTS.name,
                OPERATOR_RESULTS.name,
            }
        ),
        service=SERVICE,
        dead_letter_limit=settings.dead_letter_limit,
        numbered_outputs=(TRAINING_BATCHES.name,),
        partitions=settings.partitions,
    )


def build(settings: ProcessorSettings) -> faust.App:
    """Build the application. It connects to nothing until it is started."""
    app = host_engine(
        engine_config(settings),
        ProcessorStep(settings.limits, ErasureConfig(settings.partitions)),
        access=Access.from_settings(settings),
        host=settings.host,
        port=settings.port,
        data_dir=settings.data_dir,
        store=settings.store,
        store_cache_mb=settings.store_cache_mb,
    )
    kafka = settings.kafka
    add_skip_commands(app, SERVICE, kafka)
    if settings.live_view:
        add_live_view(app, LiveView(app.engine, lambda: TallyReader(kafka)))
    return app


@cache
def _shared_app() -> faust.App:
    settings = load(ProcessorSettings)
    configure_logging(SERVICE, settings.log_level)
    return build(settings)


def __getattr__(name: str) -> faust.App:
    """Build `app` when Faust's command line asks for it, because importing this module must not read settings.

    It asks more than once, and a process can claim its instance only once.
    """
    if name == "app":
        return _shared_app()
    raise AttributeError(name)
