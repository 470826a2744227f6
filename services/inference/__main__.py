"""`python -m services.inference`: builds the real parts once, runs them, stops them in order."""

from __future__ import annotations

import sys

import structlog
import uvicorn

from services.inference.api.routes import AppDependencies, create_app
from services.inference.engine.chat_tokenizer import ChatTokenizer
from services.inference.engine.lora_model import LoraModel
from services.inference.engine.transformers_engine import TransformersEngine
from services.inference.response_publisher import (
    ResponsePublisher,
    SpoolResponsePublisher,
    SpoolSender,
    StrictResponsePublisher,
)
from services.inference.rollout_reader import RolloutReader, describe_refusals
from services.inference.settings import InferenceSettings
from services.inference.spool import Spool
from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import VersionSwap
from shared.adapters.artifacts import open_artifacts
from shared.adapters.base_model import find_base
from shared.adapters.clock import SystemClock
from shared.adapters.http import stop_in_order
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.adapters.topic_admin import check_partitions
from shared.errors import Fatal, LoopwrightError
from shared.ports import LogReader, Publisher
from shared.pseudonym import Pseudonymiser
from shared.settings import load
from shared.telemetry import Readiness, configure_logging
from shared.topics import MODEL_ROLLOUT

SERVICE = "inference"
log = structlog.get_logger(__name__)


class InferenceService:
    """All parts of one process, and the order in which they start and stop."""

    def __init__(self, settings: InferenceSettings) -> None:
        self.settings = settings
        self.failure: LoopwrightError | None = None
        key = settings.require_pseudonym_key()
        base = find_base(settings.base_model)
        self.readiness = Readiness("model", "rollout", *(["spool"] if settings.delivery == "spool" else []))
        prompts = ChatTokenizer(base.path, settings.max_context)
        self.engine = TransformersEngine(
            lambda: LoraModel(
                base.path, prompts, device=settings.device, dtype=settings.dtype, threads=settings.threads
            ),
            prompts.decode,
            base=base.ref(settings.line).version,
            max_batch=settings.max_batch,
            max_batch_tokens=settings.max_batch_tokens,
            max_waiting=settings.max_waiting,
            batch_wait_s=settings.batch_wait_ms / 1000,
        )
        serving = VersionRegistry(settings.line, base.ref(settings.line), self.engine.unload)
        recorder = self._delivery()
        takeover = VersionSwap(
            serving,
            open_artifacts(settings.artifacts, settings.artifact_cache),
            self.engine,
            lambda refusals: self.readiness.set("rollout", ok=True, detail=describe_refusals(refusals)),
        )
        self.reader = RolloutReader(self._open_reader, takeover, self.publisher, self.readiness, self.fail)
        self.app = create_app(
            AppDependencies(
                settings,
                serving,
                self.engine,
                prompts,
                recorder,
                self.readiness,
                Pseudonymiser(key),
                SystemClock(),
                lambda: takeover.refusals,
            )
        )
        config = uvicorn.Config(
            self.app,
            settings.host,
            settings.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=settings.drain_s,
        )
        self.server = uvicorn.Server(config)

    def _delivery(self) -> ResponsePublisher:
        servers, strict = self.settings.kafka_bootstrap_servers, self.settings.delivery == "strict"
        timeout = self.settings.strict_timeout_s if strict else 10.0
        self.publisher: Publisher = KafkaPublisher(servers, SERVICE, timeout_s=timeout)
        self.spool: Spool | None = None
        self.sender: SpoolSender | None = None
        if strict:
            return StrictResponsePublisher(self.publisher)
        self.spool = Spool(self.settings.data_dir / SERVICE / "spool.sqlite", self.settings.spool_mb << 20)
        self.sender = SpoolSender(self.spool, self.publisher)
        return SpoolResponsePublisher(self.spool, self.readiness)

    def _open_reader(self) -> LogReader:
        servers = self.settings.kafka_bootstrap_servers
        check_partitions(servers, self.settings.partitions)
        return KafkaLogReader(servers, SERVICE, [MODEL_ROLLOUT.name])

    def fail(self, error: LoopwrightError) -> None:
        """From any thread: this process cannot go on. It stops in order and says why."""
        self.failure = error
        self.server.should_exit = True

    def run(self) -> None:
        """Serves until told to stop. Raises the `LoopwrightError` that ended it, if one did."""
        self.engine.loaded.add_done_callback(lambda future: self._loaded(future.exception()))
        self.engine.start()
        if self.sender is not None:
            self.sender.start()
        self.reader.start()
        try:
            self.server.run()
        finally:
            self.stop()
        if self.failure is not None:
            raise self.failure

    def _loaded(self, error: BaseException | None) -> None:
        if error is None:
            self.readiness.set("model", ok=True, detail=self.settings.base_model)
            return
        self.fail(error if isinstance(error, LoopwrightError) else Fatal(f"the base model failed: {error}"))

    def stop(self) -> None:
        """No requests are left but cancelled ones; what they leave behind goes to the log, or stays in the
        spool."""
        self.engine.stop(5.0)
        self.reader.stop()
        if self.sender is not None and self.spool is not None:
            self.sender.stop(self.settings.flush_s)
            self.spool.close()
        self.publisher.close()


def main() -> None:
    try:
        settings = load(InferenceSettings)
        configure_logging(SERVICE, settings.log_level)
        log.info("starting", **settings.masked())
        inference = InferenceService(settings)
        stop_in_order(inference.server)
        inference.run()
    except LoopwrightError as error:
        sys.exit(f"{SERVICE}: {error}")


if __name__ == "__main__":
    main()
