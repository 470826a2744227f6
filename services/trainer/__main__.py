"""`python -m services.trainer`"""

from __future__ import annotations

import signal
import sys
import threading

import structlog
from fastapi import FastAPI
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from services.trainer.api.gate_routes import add_gate_routes
from services.trainer.api.lineage_routes import LineageQueries, add_lineage_routes
from services.trainer.consumer import TOPICS_READ
from services.trainer.database import lock_folder, open_database
from services.trainer.dataset import batch_table
from services.trainer.service import Trainer
from services.trainer.settings import TrainerSettings
from services.trainer.versions.publish import SERVICE, VersionLog, transactional_id
from services.trainer.worker import launcher
from shared.adapters.artifacts import open_artifacts
from shared.adapters.base_model import find_base
from shared.adapters.clock import SystemClock
from shared.adapters.http import ServerThread, add_service_routes
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher, KafkaTransactionalPublisher
from shared.adapters.redis import RedisCache
from shared.adapters.topic_admin import check_partitions
from shared.errors import BrokerUnavailable, LoopwrightError
from shared.settings import load
from shared.telemetry import Readiness, configure_logging

WAIT_FOR_KAFKA_S = 60.0


def build(settings: TrainerSettings, readiness: Readiness) -> Trainer:
    """All real parts, once. Waits a minute for a broker."""
    servers = settings.kafka_bootstrap_servers
    base = find_base(settings.base_model)
    readiness.set("base model", True, base.name)
    waiting = Retrying(
        retry=retry_if_exception_type(BrokerUnavailable),
        stop=stop_after_delay(WAIT_FOR_KAFKA_S),
        wait=wait_fixed(1.0),
        reraise=True,
    )
    waiting(check_partitions, servers, settings.partitions)
    db = open_database(settings.folder)
    trainer = Trainer(
        settings=settings,
        base=base,
        db=db,
        reader=KafkaLogReader(servers, SERVICE, TOPICS_READ, batch_table.positions(db)),
        publisher=KafkaPublisher(servers, SERVICE),
        versions=VersionLog(
            settings.line,
            lambda topic: KafkaLogReader(servers, SERVICE, [topic]),
            lambda: KafkaTransactionalPublisher(servers, SERVICE, transactional_id(settings.line)),
        ),
        store=open_artifacts(settings.artifacts, settings.artifact_cache),
        cache=RedisCache(settings.redis_url),
        clock=SystemClock(),
        start_run=launcher.start_run,
    )
    readiness.set("kafka", True)
    return trainer


def answers(settings: TrainerSettings) -> LineageQueries:
    """What is told over HTTP, from the start on: it asks the log when it is asked."""
    servers = settings.kafka_bootstrap_servers
    return LineageQueries(
        settings,
        lambda topic: KafkaLogReader(servers, SERVICE, [topic]),
        open_artifacts(settings.artifacts, settings.artifact_cache),
    )


def main() -> None:
    """Parses settings, builds the real parts once, runs until SIGTERM or SIGINT."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        settings = load(TrainerSettings)
        configure_logging(SERVICE, settings.log_level)
        structlog.get_logger().info("starting", **settings.masked())
        held = lock_folder(settings.folder)
        readiness = Readiness("base model", "kafka")
        app = add_service_routes(
            FastAPI(title="Loopwright trainer", docs_url=None, redoc_url=None), readiness
        )
        add_gate_routes(add_lineage_routes(app, answers(settings)), settings)
        door = ServerThread(app, settings.host, settings.port)
        door.start()
        build(settings, readiness).run(stopping)
        door.stop()
        held.close()
    except LoopwrightError as error:
        structlog.get_logger().critical("ended", code=error.code, error=str(error))
        sys.exit(f"trainer: {error}")


if __name__ == "__main__":
    main()
