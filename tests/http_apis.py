"""Every HTTP API in this process, over a log and a cache in memory: for its OpenAPI document, and to send it anything.

`make openapi` writes the documents to `docs/schemas/openapi/`; a test fails if they are not current.
"""

from __future__ import annotations

import atexit
import json
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from services.console.api.dead_letter_routes import add_dead_letter_routes
from services.console.api.quarantine_routes import add_quarantine_routes
from services.console.api.routes import add_fallback_route
from services.console.api.routes import build_app as build_console
from services.console.backend import ConsoleBackend
from services.console.core.ledger import CountedRecords
from services.console.core.projection import FOLLOWED_TOPICS
from services.console.dead_letter_query import DeadLetterReader
from services.console.settings import ConsoleSettings
from services.feedback.browser_tokens import BrowserTokens
from services.feedback.command_consumer import CommandConsumer
from services.feedback.service import Adapters, FeedbackService
from services.feedback.settings import FeedbackSettings
from services.inference.api.routes import refuse
from services.trainer.api.app import trainer_app as trainer_api
from services.trainer.api.lineage_routes import LineageQueries
from services.trainer.database import open_database
from services.trainer.settings import TrainerSettings
from shared.adapters.access import Access
from shared.adapters.access_middleware import secure
from shared.adapters.artifacts_local import LocalArtifactStore
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import (
    InMemoryAsyncCache,
    InMemoryCache,
    InMemoryLog,
    InMemoryLogRanges,
    InMemoryLogReader,
    InMemoryPublisher,
    InMemoryTransactionalPublisher,
)
from shared.adapters.topic_follower import TopicFollower
from shared.events import to_ms
from shared.records import Output
from shared.stream.state_store import MemoryStore
from shared.telemetry import Readiness
from shared.versions import ModelVersion, VersionRef
from tests.access import access_of, bearer, make_keys
from tests.inference_app import App as InferenceApp

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas" / "openapi"
LINE = "assistant"
KEY = "a pseudonym key that is long enough"
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
BASE = VersionRef(version=f"{LINE}@base-00000000", kind="base", digest="0" * 64)


@cache
def _keys() -> tuple[Path, str]:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "keys.json"
    return path, make_keys(path, {"all": ["chat", "ingest", "read", "operate", "erase"]})["all"]


def access() -> Access:
    """Return the access of the APIs: everything needs a key."""
    return access_of(_keys()[0])


def authorization() -> dict[str, str]:
    """Return the header with a key that may do everything."""
    return bearer(_keys()[1])


@dataclass
class Feedback:
    """The feedback service over a log in memory, and what its parts share."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(to_ms(NOW)))
    settings: FeedbackSettings = field(
        default_factory=lambda: FeedbackSettings(
            line=LINE,
            pseudonym_key=SecretStr(KEY),
            certificate_key=SecretStr("11" * 32),
            user_per_minute=1_000_000,
            responses_per_minute=1_000_000,
            erasures_per_minute=1_000_000,
        )
    )

    def __post_init__(self) -> None:
        """Build the service."""
        self.log = InMemoryLog(3, self.clock)
        self.publisher = InMemoryPublisher(self.log, "feedback")
        self.cache = InMemoryCache(self.clock)
        self.service = FeedbackService(self.settings, KEY.encode(), self._adapters())

    @property
    def app(self) -> FastAPI:
        """The service's app."""
        return self.service.app

    def _adapters(self) -> Adapters:
        return Adapters(
            publisher=self.publisher,
            replay_publisher=InMemoryPublisher(self.log, "feedback"),
            cache=self.cache,
            async_cache=InMemoryAsyncCache(self.cache),
            clock=self.clock,
            log_ranges=InMemoryLogRanges(self.log),
            export_ranges=InMemoryLogRanges(self.log),
            open_reader=lambda topics, starts=None, *, partitions=None: InMemoryLogReader(
                self.log, list(topics), starts, partitions=partitions
            ),
            end_of=self.log.end,
            open_receipt_store=MemoryStore,
            open_erasure_publisher=lambda: InMemoryTransactionalPublisher(self.log, "feedback", "erasure"),
            open_command_consumer=_no_commands,
            access=access(),
            tokens=BrowserTokens(b"a browser token key of some length", self.clock),
        )

    @contextmanager
    def running(self) -> Iterator[Feedback]:
        """Follow the log, as the service does while it serves."""
        followers = self.service._followers
        for follower in followers:
            follower.start()
        try:
            _wait_until(lambda: all(follower.caught_up for follower in followers))
            yield self
        finally:
            for follower in followers:
                follower.stop()


def _no_commands() -> CommandConsumer:
    raise AssertionError("replays are not part of these tests")


def _wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the app did not become ready"
        time.sleep(0.01)


@contextmanager
def feedback_app() -> Iterator[FastAPI]:
    """The app of the feedback service."""
    with Feedback().running() as feedback:
        yield feedback.app


@contextmanager
def inference_app() -> Iterator[FastAPI]:
    """The app of inference, on the engine in memory, which answers "hello"."""
    inference = InferenceApp(max_context=10_000)
    inference.engine.start()
    try:
        secure(inference.app, access(), refuse=refuse)
        yield inference.app
    finally:
        inference.engine.resume.set()
        inference.engine.stop(5)


@contextmanager
def console_app() -> Iterator[FastAPI]:
    """The app of the console, without its page."""
    clock = ManualClock()
    log, readiness = InMemoryLog(3, clock), Readiness("log")
    base = ModelVersion(line=LINE, ref=BASE, base=BASE.version, base_model="b", created_at=NOW)
    log.append(Output("model.versions", b"v", base.to_json()))
    backend = ConsoleBackend(
        ConsoleSettings(line=LINE),
        InMemoryPublisher(log, "console"),
        InMemoryCache(clock),
        clock,
        lambda _: CountedRecords(0, complete=True),
    )
    topics = [topic.name for topic in FOLLOWED_TOPICS]
    follower = TopicFollower(
        "log", lambda: InMemoryLogReader(log, topics), backend.apply, readiness, lambda: None
    )
    app = build_console(backend, follower, readiness)
    add_dead_letter_routes(app, backend, follower, DeadLetterReader(InMemoryLogRanges(log)))
    add_quarantine_routes(app, backend, follower)
    add_fallback_route(app)
    secure(app, access())
    follower.start()
    try:
        _wait_until(lambda: follower.caught_up)
        yield app
    finally:
        follower.stop()


@contextmanager
def trainer_app() -> Iterator[FastAPI]:
    """The app of a trainer that has not trained anything."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainerSettings(line=LINE, data_dir=Path(folder) / "data")
        open_database(settings.folder).close()
        log = InMemoryLog(3)
        queries = LineageQueries(
            settings,
            lambda topic: InMemoryLogReader(log, [topic]),
            LocalArtifactStore(Path(folder) / "artifacts"),
        )
        app = trainer_api(queries, Readiness("kafka"))
        secure(app, access())
        yield app


APPS = {
    "feedback": feedback_app,
    "inference": inference_app,
    "console": console_app,
    "trainer": trainer_app,
}


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an app on a port of this machine, without its lifespan, and return its URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def documents() -> dict[str, dict[str, Any]]:
    """Return the OpenAPI document of every API by its name."""
    with ExitStack() as stack:
        return {name: stack.enter_context(app()).openapi() for name, app in APPS.items()}


def main() -> None:
    """Write the documents."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, document in documents().items():
        path = FOLDER / f"{name}.json"
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
