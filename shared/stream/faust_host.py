"""Hosts the engine in a Faust worker, which provides the process, its command line and the web views.

The worker's own Kafka clients are off. Faust's consumer reads uncommitted records and acknowledges on exceptions, and
its producer only logs a failed send, so they could lose or duplicate data (`docs/decisions/stream-engine.md`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import faust
import structlog
from faust.app.base import BootStrategy
from faust.types.web import Request, Response
from faust.web import View
from faust.web.drivers.aiohttp import Web
from mode import Service
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from shared.adapters.access import Access
from shared.adapters.clock import SystemClock
from shared.adapters.kafka import KafkaLogReader
from shared.errors import Fatal
from shared.kafka_connection import KafkaConnection
from shared.stream.config import EngineConfig
from shared.stream.engine import Engine
from shared.stream.engine_metrics import EngineCollector
from shared.stream.instance import claim_instance
from shared.stream.rocksdb_store import RocksDBStoreFactory
from shared.stream.skip_commands import CHECK, SkipCommands
from shared.stream.slice_runner import CommitStats
from shared.stream.state_store import DEFAULT_CACHE_MB, MemoryStore, StoreKind
from shared.stream.step import RereadingStep, Step
from shared.stream.web_access import secure_views
from shared.telemetry import DEAD_LETTERED, ENGINE_ABORTS, ENGINE_COMMITS, ENGINE_RECORDS

log = structlog.get_logger(__name__)


class EngineService(Service):
    """Service that runs an engine in its own thread while the worker lives. If the engine fails, the worker ends."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        super().__init__(**options)
        self._engine = engine
        self._stop_request = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    async def on_start(self) -> None:
        """Start the engine's thread. The worker does not wait until the engine is ready."""
        self._thread.start()

    async def on_stop(self) -> None:
        """Let the current slice commit, and leave the group. Takes at most ten seconds."""
        self._stop_request.set()
        await asyncio.to_thread(self._thread.join, 10.0)

    @Service.task
    async def _watch(self) -> None:
        while not self.should_stop:
            if not self._thread.is_alive():
                raise self._failure or Fatal("the engine ended unexpectedly")
            await self.sleep(0.2)

    def _run(self) -> None:
        try:
            self._engine.run(self._stop_request)
        except BaseException as error:
            self._failure = error
            log.critical("engine_failed", error=str(error), kind=type(error).__name__)
            raise


class _NoKafka(BootStrategy):
    enable_kafka = False


class EngineApp(faust.App):
    """Application of the worker. Create it with `host_engine`."""

    BootStrategy = _NoKafka
    engine: Engine
    readiness_details: dict[str, Callable[[], str]]
    """Additional information in `/readyz`, by name. Only the engine decides whether the process is ready."""

    async def on_first_start(self) -> None:
        """Do nothing. Faust would create folders for its tables, and fail if the parent folders are missing."""


def host_engine(
    config: EngineConfig,
    step: Step | RereadingStep,
    *,
    access: Access,
    host: str,
    port: int,
    data_dir: Path,
    store: StoreKind = "rocksdb",
    store_cache_mb: int = DEFAULT_CACHE_MB,
) -> EngineApp:
    """Return a Faust application that runs an engine, with `/livez`, `/readyz`, `/metrics` and `/partitions`.

    It is named after the engine's application and connects when it is started. With `store="rocksdb"` the state is kept
    in `data_dir`, in a folder for this instance; with "memory" each start reads the whole changelog.

    `access` checks all requests; views other than the first three need the scope `read`.

    Unless `config` has an identity, the process claims its instance now and holds it until it ends, so that processes
    on one data folder never share stores or a `transactional.id`.

    Raises:
        Misconfigured: The instance is taken, or the data folder cannot be locked.

    """
    name = config.application
    if not config.identity:
        instance = claim_instance(data_dir / name, config.instance)
        config = replace(config, instance=instance.name, identity=instance.identity)
        log.info("instance_claimed", application=name, instance=instance.name, identity=instance.identity)
    folder = data_dir / name / "state" / config.instance
    engine = Engine(
        config,
        step,
        open_store=MemoryStore
        if store == "memory"
        else RocksDBStoreFactory(folder, store_cache_mb, partitions=config.partitions or 1),
        on_commit=lambda commit: _count_commit(name, commit),
        on_abort=lambda _: ENGINE_ABORTS.labels(name).inc(),
    )
    app = EngineApp(
        name,
        autodiscover=False,
        broker=[f"kafka://{server.strip()}" for server in config.kafka.servers.split(",")],
        datadir=str(data_dir / name),
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_host=host,
        web_bind=host,
        web_port=port,
        worker_redirect_stdouts=False,
    )

    app.engine, app.readiness_details = engine, {}

    class Host(EngineService):
        """Class that Faust can construct without arguments."""

        def __init__(self, **options: Any) -> None:
            super().__init__(engine, **options)

    app.service(Host)
    _add_views(app, engine)
    web = app.web
    assert isinstance(web, Web)
    secure_views(web.web_app, access)
    if access.keys is not None:
        app.readiness_details["api_keys"] = lambda: access.problem or "ok"
    return app


def add_skip_commands(app: EngineApp, service: str, kafka: KafkaConnection) -> None:
    """Carry out `skip` commands for as long as the worker runs, and name their status in `/readyz`."""
    commands = SkipCommands(
        app.engine, service, lambda topics: KafkaLogReader(kafka, service, topics), SystemClock()
    )

    class SkipService(Service):
        """Starts after the engine and stops before it, because it is added after the engine."""

        async def on_start(self) -> None:
            commands.start()

        async def on_stop(self) -> None:
            await asyncio.to_thread(commands.stop)

    app.service(SkipService)
    app.readiness_details[CHECK] = commands.status


def _count_commit(application: str, commit: CommitStats) -> None:
    ENGINE_COMMITS.labels(application).inc()
    ENGINE_RECORDS.labels(application).inc(commit.records)
    for kind in commit.dead_letters:
        DEAD_LETTERED.labels(application, kind).inc()


def _add_views(app: EngineApp, engine: Engine) -> None:
    @app.page("/livez")
    async def livez(view: View, _: Request) -> Response:
        return view.json({"status": "alive"})

    @app.page("/readyz")
    async def readyz(view: View, _: Request) -> Response:
        detail = f"{engine.state}: {engine.reason}" if engine.reason else engine.state
        checks = {"engine": f"ok: {detail}" if engine.ready else detail}
        checks["clock"] = engine.clock_check
        if engine.warnings:
            checks["warnings"] = "; ".join(engine.warnings)
        checks |= {name: detail() for name, detail in app.readiness_details.items()}
        return view.json({"ready": engine.ready, "checks": checks}, status=200 if engine.ready else 503)

    gauges = CollectorRegistry()
    gauges.register(EngineCollector(engine, SystemClock()))

    @app.page("/metrics")
    async def metrics(view: View, _: Request) -> Response:
        text = generate_latest() + generate_latest(gauges)
        return view.bytes(text, content_type=CONTENT_TYPE_LATEST.split(";")[0])

    @app.page("/partitions")
    async def partitions(view: View, _: Request) -> Response:
        return view.json({"state": engine.state, "partitions": [asdict(p) for p in engine.partitions()]})


def run_worker(app: faust.App, log_level: str) -> NoReturn:
    """Run the worker until SIGTERM or SIGINT, and exit; the exit status is not zero if the engine failed."""
    worker = faust.Worker(app, loglevel=log_level, quiet=True, override_logging=False)
    worker.execute_from_commandline()
