"""Entry point of the trainer: `python -m services.trainer`."""

from __future__ import annotations

import signal
import threading
from typing import Final

from fastapi import FastAPI
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from services.trainer.api.gate_routes import add_gate_routes
from services.trainer.api.lineage_routes import LineageQueries, add_lineage_routes
from services.trainer.consumer import TOPICS_READ
from services.trainer.database import lock_folder, open_database
from services.trainer.dataset import batch_table
from services.trainer.gate.golden import read_golden_set
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
from shared.entry_point import run_service
from shared.errors import BrokerUnavailable
from shared.telemetry import Readiness

KAFKA_TIMEOUT_S: Final = 60.0
"""How long a start waits for the broker."""


def build(settings: TrainerSettings, readiness: Readiness) -> Trainer:
    """Build the trainer with its real adapters. Waits for the broker up to `KAFKA_TIMEOUT_S`."""
    kafka = settings.kafka
    base = find_base(settings.base_model)
    readiness.set("base model", True, base.name)
    retrying = Retrying(
        retry=retry_if_exception_type(BrokerUnavailable),
        stop=stop_after_delay(KAFKA_TIMEOUT_S),
        wait=wait_fixed(1.0),
        reraise=True,
    )
    retrying(check_partitions, kafka, settings.partitions)
    db = open_database(settings.folder)
    trainer = Trainer(
        settings=settings,
        base=base,
        db=db,
        reader=KafkaLogReader(kafka, SERVICE, TOPICS_READ, batch_table.positions(db)),
        publisher=KafkaPublisher(kafka, SERVICE),
        versions=VersionLog(
            settings.line,
            lambda topic: KafkaLogReader(kafka, SERVICE, [topic]),
            lambda: KafkaTransactionalPublisher(kafka, SERVICE, transactional_id(settings.line)),
        ),
        store=open_artifacts(settings.artifacts, settings.artifact_cache),
        cache=RedisCache(settings.redis_url),
        clock=SystemClock(),
        start_run=launcher.start_run,
    )
    readiness.set("kafka", True)
    return trainer


def lineage_queries(settings: TrainerSettings) -> LineageQueries:
    """Return the read-only queries of the HTTP API. Each reads the log, so they work before the trainer is ready."""
    kafka = settings.kafka
    return LineageQueries(
        settings,
        lambda topic: KafkaLogReader(kafka, SERVICE, [topic]),
        open_artifacts(settings.artifacts, settings.artifact_cache),
    )


def run(settings: TrainerSettings) -> None:
    """Serve the HTTP API, and run the trainer until SIGTERM or SIGINT."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    if settings.golden is not None:
        read_golden_set(settings.golden)  # a file with errors stops the start, not the first gate
    lock = lock_folder(settings.folder)
    readiness = Readiness("base model", "kafka")
    app = add_service_routes(FastAPI(title="Loopwright trainer", docs_url=None, redoc_url=None), readiness)
    add_gate_routes(add_lineage_routes(app, lineage_queries(settings)), settings)
    server = ServerThread(app, settings.host, settings.port)
    server.start()
    trainer = build(settings, readiness)
    readiness.watch("log", lambda: trainer.problem)
    readiness.watch("publisher", lambda: trainer.publisher.problem)
    trainer.run(stopping)
    server.stop()
    lock.close()


def main() -> None:
    """Run the service."""
    run_service(SERVICE, TrainerSettings, run)


if __name__ == "__main__":
    main()
