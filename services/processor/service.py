"""The processor as a Faust application: `python -m services.processor`, or Faust's own command line."""

from __future__ import annotations

import faust

from services.processor.core.erasure.process import ErasureConfig
from services.processor.core.step import ProcessorStep
from services.processor.core.wire import SERVICE
from services.processor.live_view.agent import LiveView
from services.processor.live_view.supervisor import LiveKeeper, attach
from services.processor.settings import ProcessorSettings
from shared.settings import load
from shared.stream.config import EngineConfig
from shared.stream.faust_host import host_engine
from shared.telemetry import configure_logging
from shared.topics import (
    CHAT_RESPONSES,
    DEAD_LETTERS,
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    PROCESSOR_CHANGELOG,
    TRAINING_BATCHES,
)


def engine_config(settings: ProcessorSettings) -> EngineConfig:
    """Responses before feedback at the same append time: then nothing waits that need not."""
    return EngineConfig(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        application=f"loopwright-{SERVICE}",
        instance=settings.instance,
        inputs=(CHAT_RESPONSES.name, FEEDBACK_EVENTS.name, ERASURE_REQUESTS.name),
        changelog=PROCESSOR_CHANGELOG.name,
        dead_letters=DEAD_LETTERS.name,
        outputs=frozenset(
            {TRAINING_BATCHES.name, FEEDBACK_OUTCOMES.name, FEEDBACK_TALLIES.name, ERASURE_REPORTS.name}
        ),
        service=SERVICE,
        partitions=settings.partitions,
    )


def build(settings: ProcessorSettings) -> faust.App:
    """The application, connected to nothing until it is started."""
    config = engine_config(settings)
    app = host_engine(
        config,
        ProcessorStep(settings.limits, ErasureConfig(settings.partitions)),
        host=settings.host,
        port=settings.port,
        data_dir=settings.data_dir,
        store=settings.store,
        store_cache_mb=settings.store_cache_mb,
    )
    if settings.live_view:
        # Each process shows all of the topic: a group of its own, so none shares it with another.
        group = f"{config.application}-live-{config.instance}"
        servers = settings.kafka_bootstrap_servers
        attach(app, LiveKeeper(app.engine, lambda: LiveView(servers, group)))
    return app


def __getattr__(name: str) -> faust.App:
    """`app` for Faust's command line, made when it is asked for: importing this module builds nothing."""
    if name == "app":
        settings = load(ProcessorSettings)
        configure_logging(SERVICE, settings.log_level)
        return build(settings)
    raise AttributeError(name)
