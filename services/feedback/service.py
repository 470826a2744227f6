"""The feedback service: its parts, wired together, and their life cycle."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from services.feedback.api.privacy_routes import add_privacy_routes
from services.feedback.api.routes import add_erasure_routes, add_langfuse_routes, add_token_routes, build_app
from services.feedback.browser_tokens import BrowserTokens
from services.feedback.command_consumer import CommandConsumer
from services.feedback.dlq_replay_worker import DeadLetterReplayer, DeadLetterReplayThread
from services.feedback.erasure_certificate import CertificateSigner
from services.feedback.erasure_handler import ErasureHandler
from services.feedback.export_handler import ExportHandler
from services.feedback.handlers import FeedbackHandlers
from services.feedback.langfuse.score_handlers import ScoreHandlers
from services.feedback.receipt_index import ReceiptIndex
from services.feedback.receipt_lookup import ReceiptLookup
from services.feedback.settings import FeedbackSettings
from services.feedback.views import ErasureStatusView, KnownLines, VersionsView
from shared.adapters.access import Access
from shared.adapters.access_middleware import secure
from shared.adapters.async_publisher import AsyncPublisher
from shared.adapters.http import serve
from shared.adapters.topic_follower import TopicFollower
from shared.ports import (
    AsyncCache,
    Cache,
    Clock,
    LogRanges,
    LogReader,
    Position,
    Publisher,
    TransactionalPublisher,
)
from shared.pseudonym import Pseudonymiser
from shared.records import Record
from shared.stream.state_store import StateStore
from shared.telemetry import Readiness
from shared.topics import (
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    MODEL_ROLLOUT,
    MODEL_SERVING,
    MODEL_VERSIONS,
    OPERATOR_RESULTS,
)


class OpenReader(Protocol):
    """Opens a reader of topics, or of some of their partitions, from `starts` or from their beginning."""

    def __call__(
        self,
        topics: Sequence[str],
        starts: Mapping[Position, int] | None = None,
        *,
        partitions: Collection[int] | None = None,
    ) -> LogReader:
        """Return the reader. The caller closes it."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """What the service uses of the outside world. `__main__` builds the real ones."""

    publisher: Publisher
    replay_publisher: Publisher
    """A publisher of its own for replays, so that they do not delay requests."""
    cache: Cache
    async_cache: AsyncCache
    clock: Clock
    log_ranges: LogRanges
    export_ranges: LogRanges
    """Reads whole topics, so it may take long."""
    open_reader: OpenReader
    end_of: Callable[[Position], int]
    """Returns the next offset to be written of a partition, or raises `Retryable`."""
    open_receipt_store: Callable[[], StateStore]
    """Opens this process's own store of the index of receipts."""
    open_erasure_publisher: Callable[[], TransactionalPublisher]
    open_command_consumer: Callable[[], CommandConsumer]
    access: Access
    """Decides which requests are answered."""
    tokens: BrowserTokens | None = None
    """Makes browser tokens; None: nobody gets one."""


class FeedbackService:
    """One feedback process."""

    def __init__(self, settings: FeedbackSettings, pseudonym_key: bytes, adapters: Adapters) -> None:
        self._settings = settings
        self._adapters = adapters
        self._pseudonymiser = Pseudonymiser(pseudonym_key)
        self._readiness = Readiness("versions", "receipts", "erasures")
        self._readiness.watch("publisher", lambda: adapters.publisher.problem)
        self._versions = VersionsView()
        self._erasures = ErasureStatusView()
        versions = self._follow(
            "versions",
            [MODEL_VERSIONS.name, MODEL_ROLLOUT.name, MODEL_SERVING.name],
            self._versions.apply,
        )
        self._lines = KnownLines(
            frozenset({settings.line, *settings.lines}), self._versions, lambda: versions.caught_up
        )
        self._receipts = ReceiptLookup(
            ReceiptIndex(adapters.open_receipt_store, max_records=settings.receipt_records),
            adapters.open_reader,
            adapters.log_ranges,
            adapters.end_of,
            partitions=settings.partitions,
            readiness=self._readiness,
            on_failure=_terminate,
        )
        erasures = self._follow(
            "erasures", [ERASURE_REQUESTS.name, ERASURE_REPORTS.name], self._erasures.apply
        )
        self._followers = (versions, self._receipts.follower, erasures)
        self._replays = DeadLetterReplayThread(self._replayer())
        handlers = self._handlers()
        self.app = build_app(handlers, versions, self._readiness, self._lifespan)
        add_langfuse_routes(self.app, ScoreHandlers(handlers))
        erasure = self._erasure_handler()
        add_erasure_routes(self.app, erasure, erasures)
        key = settings.certificate_key
        add_privacy_routes(
            self.app,
            erasure,
            erasures,
            ExportHandler(adapters.export_ranges, self._pseudonymiser),
            CertificateSigner(key.get_secret_value()) if key is not None else None,
        )
        add_token_routes(self.app, adapters.tokens)
        if adapters.access.keys is not None:
            self._readiness.watch("api_keys", lambda: adapters.access.problem)
        secure(self.app, adapters.access)

    def run(self) -> bool:
        """Serve until the process is asked to stop. Return False if a follower failed and stopped it."""
        self._replays.start()
        try:
            serve(self.app, self._settings.host, self._settings.port)
        finally:
            self._replays.stop()
        return not any(follower.failed for follower in self._followers)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        for follower in self._followers:
            follower.start()
        try:
            yield
        finally:
            for follower in self._followers:
                await run_in_threadpool(follower.stop)
            await run_in_threadpool(self._receipts.stop)
            await run_in_threadpool(self._adapters.publisher.close)
            await self._adapters.async_cache.close()

    def _follow(
        self, check: str, topics: Sequence[str], apply: Callable[[Sequence[Record]], None]
    ) -> TopicFollower:
        return TopicFollower(
            check, lambda: self._adapters.open_reader(topics), apply, self._readiness, _terminate
        )

    def _handlers(self) -> FeedbackHandlers:
        settings, adapters = self._settings, self._adapters
        return FeedbackHandlers(
            settings=settings,
            publisher=AsyncPublisher(adapters.publisher),
            cache=adapters.async_cache,
            clock=adapters.clock,
            pseudonymiser=self._pseudonymiser,
            lines=self._lines,
            versions=self._versions,
            erasures=self._erasures,
            receipts=self._receipts,
        )

    def _erasure_handler(self) -> ErasureHandler:
        return ErasureHandler(
            settings=self._settings,
            open_publisher=self._adapters.open_erasure_publisher,
            open_requests=lambda: self._adapters.open_reader([ERASURE_REQUESTS.name], partitions=[0]),
            cache=self._adapters.cache,
            clock=self._adapters.clock,
            pseudonymiser=self._pseudonymiser,
            lines=self._lines,
            erasures=self._erasures,
        )

    def _replayer(self) -> DeadLetterReplayer:
        return DeadLetterReplayer(
            open_consumer=self._adapters.open_command_consumer,
            open_results=lambda: self._adapters.open_reader([OPERATOR_RESULTS.name]),
            ranges=self._adapters.log_ranges,
            publisher=self._adapters.replay_publisher,
            clock=self._adapters.clock,
            ack_timeout_s=self._settings.ack_timeout_s,
        )


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
