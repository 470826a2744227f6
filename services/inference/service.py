"""The parts of one inference process, and the order in which they start and stop."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import structlog
import uvicorn
from fastapi import FastAPI

from services.inference.api.chat_handler import ChatHandler
from services.inference.api.routes import create_app, refuse
from services.inference.engine.chat_tokenizer import ChatTokenizer
from services.inference.engine.port import InferenceEngine
from services.inference.engine.vllm.addresses import parse_urls
from services.inference.engine.vllm.engine import VllmEngine, vllm_base
from services.inference.last_record import LastRecord
from services.inference.response_publisher import (
    ResponsePublisher,
    SpoolResponsePublisher,
    SpoolSender,
    StrictResponsePublisher,
)
from services.inference.rollout_reader import RolloutReader, describe_refusals
from services.inference.serving_reporter import ServingReporter
from services.inference.settings import InferenceSettings
from services.inference.spool import Spool
from services.inference.version_registry import VersionRegistry
from services.inference.version_swap import Refusal, VersionSwap
from shared.adapters.access import Access
from shared.adapters.access_middleware import secure
from shared.adapters.artifacts import open_artifacts
from shared.adapters.base_model import PinnedBase, find_base
from shared.adapters.clock import SystemClock
from shared.adapters.kafka import KafkaPublisher
from shared.adapters.topic_admin import CheckedReaders
from shared.errors import Fatal, LoopwrightError
from shared.ports import LogReader, Publisher
from shared.pseudonym import Pseudonymiser
from shared.telemetry import Readiness
from shared.topics import MODEL_ROLLOUT

log = structlog.get_logger(__name__)
SERVICE = "inference"
SPOOL_ACK_TIMEOUT_S = 10.0
ENGINE_STOP_S = 5.0


def build_engine(
    settings: InferenceSettings, base: PinnedBase, on_status: Callable[[bool, str], None]
) -> InferenceEngine:
    """Return the engine, not started.

    Args:
        settings: The service's settings.
        base: The base model.
        on_status: Called with whether the servers behind the engine can answer, and their state in words. An engine
            without servers never calls it.

    Raises:
        Misconfigured: if the settings name no usable engine.

    """
    tokenizer = ChatTokenizer(base.path, settings.max_context, settings.chat_template_kwargs)
    problem = tokenizer.training_problem()
    if problem is not None:
        log.warning("base_cannot_be_trained", base=base.name, reason=problem)
    if settings.engine == "vllm":
        return _vllm_engine(settings, base, tokenizer, on_status)
    return _transformers_engine(settings, base, tokenizer)


def _transformers_engine(
    settings: InferenceSettings, base: PinnedBase, tokenizer: ChatTokenizer
) -> InferenceEngine:
    # Only this engine needs peft and the model's code, which take seconds to import.
    from services.inference.engine.open_model import open_model  # noqa: PLC0415
    from services.inference.engine.transformers_engine import TransformersEngine  # noqa: PLC0415

    version = base.ref(settings.line).version
    return TransformersEngine(
        lambda: open_model(
            base.path,
            tokenizer,
            base=version,
            device=settings.device,
            dtype=settings.dtype,
            threads=settings.threads,
            max_batch=settings.max_batch,
            max_batch_tokens=settings.max_batch_tokens,
            kv_cache_mb=settings.kv_cache_mb,
        ),
        tokenizer,
        base=version,
        max_waiting=settings.max_waiting,
    )


def _vllm_engine(
    settings: InferenceSettings,
    base: PinnedBase,
    tokenizer: ChatTokenizer,
    on_status: Callable[[bool, str], None],
) -> InferenceEngine:
    on_status(False, "looking for the vLLM servers")
    return VllmEngine(
        parse_urls(settings.engine_urls),
        vllm_base(base, settings.line, settings.engine_model),
        tokenizer,
        adapter_dir=settings.adapter_dir,
        api_key=settings.engine_api_key.get_secret_value() if settings.engine_api_key else None,
        max_waiting=settings.max_waiting,
        stall_s=settings.engine_stall_s,
        on_status=on_status,
    )


def build_app(
    settings: InferenceSettings,
    chats: ChatHandler,
    registry: VersionRegistry,
    readiness: Readiness,
    refusals: Callable[[], tuple[Refusal, ...]],
) -> FastAPI:
    """Return the ASGI application, which checks API keys. The arguments are those of `create_app`."""
    access = Access.from_settings(settings)
    if access.keys is not None:
        readiness.watch("api_keys", lambda: access.problem)
    app = create_app(chats, registry, readiness, refusals)
    secure(app, access, refuse=refuse)
    return app


class InferenceService:
    """One inference process.

    Raises:
        Misconfigured: if the settings lack a pseudonym key or name no usable base model.

    """

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._failure: LoopwrightError | None = None
        self._readers = CheckedReaders(settings.kafka, SERVICE, settings.partitions)
        pseudonyms = Pseudonymiser(settings.require_pseudonym_key())
        base = find_base(settings.base_model)
        checks = ["model", "rollout", *(["spool"] if settings.delivery == "spool" else [])]
        self._readiness = Readiness(*checks)
        self._engine = build_engine(
            settings, base, lambda ok, detail: self._readiness.set("engine", ok=ok, detail=detail)
        )
        registry = VersionRegistry(
            settings.line,
            base.ref(settings.line),
            self._engine.unload,
            keep_previous=settings.engine == "vllm",  # an adapter more costs a server little
        )
        response_publisher = self._build_delivery()
        last = LastRecord(settings.data_dir / SERVICE / "last_rollout.json", settings.line)
        swap = VersionSwap(
            registry,
            open_artifacts(settings.artifacts, settings.artifact_cache),
            self._engine,
            self._on_refusals,
            settings.chat_template_kwargs,
            last.write,
        )
        self._reporter = ServingReporter(
            settings.replica or f"{socket.gethostname()}-{settings.port or os.getpid()}",
            registry,
            lambda: swap.refusals,
            lambda: self._readiness.report()[0],
            self._publisher,
            SystemClock(),
        )
        self._rollout_reader = RolloutReader(
            self._open_rollout, swap, self._publisher, self._readiness, self._fail, last
        )
        chats = ChatHandler(
            settings=settings,
            registry=registry,
            engine=self._engine,
            publisher=response_publisher,
            readiness=self._readiness,
            pseudonyms=pseudonyms,
            clock=SystemClock(),
        )
        app = build_app(settings, chats, registry, self._readiness, lambda: swap.refusals)
        config = uvicorn.Config(
            app,
            settings.host,
            settings.port,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=settings.drain_s,
        )
        self.server = uvicorn.Server(config)

    def _build_delivery(self) -> ResponsePublisher:
        """Create the Kafka publisher and, for `delivery: spool`, the spool with its sender."""
        settings = self._settings
        is_strict = settings.delivery == "strict"
        timeout_s = settings.strict_timeout_s if is_strict else SPOOL_ACK_TIMEOUT_S
        self._publisher: Publisher = KafkaPublisher(settings.kafka, SERVICE, timeout_s=timeout_s)
        self._spool: Spool | None = None
        self._spool_sender: SpoolSender | None = None
        if is_strict:
            # With a spool, answers go on while Kafka refuses their records, until the spool is full.
            self._readiness.watch("publisher", lambda: self._publisher.problem)
            return StrictResponsePublisher(self._publisher)
        self._spool = Spool(settings.data_dir / SERVICE / "spool.sqlite", settings.spool_mb << 20)
        self._spool_sender = SpoolSender(self._spool, self._publisher, self._readiness)
        return SpoolResponsePublisher(self._spool, self._readiness)

    def _on_refusals(self, refusals: tuple[Refusal, ...]) -> None:
        self._readiness.set("rollout", ok=True, detail=describe_refusals(refusals))
        self._reporter.wake()

    def _open_rollout(self) -> LogReader:
        return self._readers([MODEL_ROLLOUT.name])

    def run(self) -> None:
        """Serve until the server is stopped.

        Raises:
            LoopwrightError: the error that stopped it, if one did.

        """
        self._engine.start().add_done_callback(lambda future: self._on_engine_started(future.exception()))
        if self._spool_sender is not None:
            self._spool_sender.start()
        self._rollout_reader.start()
        self._reporter.start()
        try:
            self.server.run()
        finally:
            self._stop()
        if self._failure is not None:
            raise self._failure

    def _on_engine_started(self, error: BaseException | None) -> None:
        if error is None:
            self._readiness.set("model", ok=True, detail=self._settings.base_model)
        elif isinstance(error, LoopwrightError):
            self._fail(error)
        else:
            self._fail(Fatal(f"the base model cannot be used: {type(error).__name__}: {error}"))

    def _fail(self, error: LoopwrightError) -> None:
        """Stop the server because of `error`. Can be called from any thread."""
        self._failure = error
        self.server.should_exit = True

    def _stop(self) -> None:
        """Stop the parts after the server. The records of requests that end now are still sent or spooled."""
        self._engine.stop(ENGINE_STOP_S)
        self._rollout_reader.stop()
        self._reporter.stop()
        if self._spool_sender is not None and self._spool is not None:
            self._spool_sender.stop(self._settings.flush_s)
            self._spool.close()
        self._publisher.close()
