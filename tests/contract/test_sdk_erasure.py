"""Erasure: both clients and the command line against the feedback service's routes, over an in-memory log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from deploy.local.ports import choose_ports
from loopwright import AsyncLoopwright, Conflict, Denied, Erasure, Invalid, Loopwright, NotFound, Retry
from loopwright.cli import app as cli
from services.feedback.api.routes import add_erasure_routes
from services.feedback.core.erasure_status import ErasureStatus
from services.feedback.erasure_handler import ErasureHandler
from services.feedback.settings import FeedbackSettings
from services.feedback.views import ErasureStatusView, KnownLines, VersionsView
from shared.adapters.access_middleware import secure
from shared.adapters.clock import ManualClock
from shared.adapters.http import ServerThread, add_service_routes
from shared.adapters.in_memory import (
    InMemoryCache,
    InMemoryLog,
    InMemoryLogReader,
    InMemoryTransactionalPublisher,
)
from shared.adapters.topic_follower import TopicFollower
from shared.events import ErasureReport
from shared.pseudonym import Pseudonymiser
from shared.records import Output
from shared.telemetry import Readiness
from tests.access import access_of, make_keys

PARTITIONS = 3
T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
VERSION = "assistant@v1-0a1b2c3d"
CallClient = Callable[..., Any]


@dataclass
class FeedbackFixture:
    log: InMemoryLog
    url: str
    key: str

    def complete_erasure(self, request_id: str) -> None:
        """Append the reports of processor and trainer."""
        report = ErasureReport(
            line="assistant",
            request_id=request_id,
            subject="u_1",
            service="processor",
            partitions=PARTITIONS,
            signals=1,
            completed_at=T0,
        )
        trainer_report = report.model_copy(
            update={"service": "trainer", "versions": (VERSION,), "snapshots": 2}
        )
        reports = [report.model_copy(update={"partition": partition}) for partition in range(PARTITIONS)]
        self.log.append(
            *(Output("erasure.reports", b"k", each.to_json()) for each in [*reports, trainer_report])
        )


@pytest.fixture
def feedback(tmp_path: Path) -> Iterator[FeedbackFixture]:
    """Serve the erasure routes of the feedback service on a free port, with API keys."""
    keys = make_keys(tmp_path / "keys.json", {"dpo": ["erase"], "app": ["ingest"]})
    clock = ManualClock(round(T0.timestamp() * 1000))
    log, readiness = InMemoryLog(PARTITIONS, clock), Readiness("erasures")
    handler = ErasureHandler(
        settings=FeedbackSettings(partitions=PARTITIONS),
        open_publisher=lambda: InMemoryTransactionalPublisher(log, "feedback", "erasure"),
        open_requests=lambda: InMemoryLogReader(log, ["erasure.requests"], partitions=[0]),
        cache=InMemoryCache(clock),
        clock=clock,
        pseudonymiser=Pseudonymiser(b"a key that is long enough"),
        lines=KnownLines(frozenset({"assistant", "support"}), VersionsView(), lambda: True),
        erasures=ErasureStatusView(),
    )
    topics = ["erasure.requests", "erasure.reports"]
    follower = TopicFollower(
        "erasures", lambda: InMemoryLogReader(log, topics), handler.erasures.apply, readiness, lambda: None
    )
    app = add_service_routes(FastAPI(), readiness)
    add_erasure_routes(app, handler, follower)
    secure(app, access_of(tmp_path / "keys.json"))
    follower.start()
    port = choose_ports({"feedback": 0})["feedback"]
    server = ServerThread(app, "127.0.0.1", port)
    server.start()
    yield FeedbackFixture(log, f"http://127.0.0.1:{port}", keys["dpo"])
    server.stop()
    follower.stop()


RETRY = Retry(attempts=40, first_wait_s=0.05, longest_wait_s=0.1)


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, feedback: FeedbackFixture) -> CallClient:
    """Return a function that calls the named method of a client."""

    def settings(key: str | None) -> dict[str, Any]:
        return {"feedback_url": feedback.url, "api_key": key, "retry": RETRY}

    def call_sync(method: str, *arguments: Any, key: str | None = feedback.key, **named: Any) -> Any:
        with Loopwright(**settings(key)) as loop:
            return getattr(loop, method)(*arguments, **named)

    async def run_async(method: str, *arguments: Any, key: str | None, **named: Any) -> Any:
        async with AsyncLoopwright(**settings(key)) as loop:
            return await getattr(loop, method)(*arguments, **named)

    def call_async(method: str, *arguments: Any, key: str | None = feedback.key, **named: Any) -> Any:
        return asyncio.run(run_async(method, *arguments, key=key, **named))

    return call_sync if request.param == "sync" else call_async


def test_erasure_models_have_the_same_fields() -> None:
    assert set(ErasureStatus.model_fields) == set(Erasure.model_fields)


def test_erasure_is_followed_until_done(feedback: FeedbackFixture, call: CallClient) -> None:
    erasure = call("erase", "alice", line="support")
    assert erasure.issued_by == "dpo"
    assert (erasure.status, erasure.line, erasure.overdue) == ("requested", "support", False)
    assert erasure.deadline > erasure.requested_at == T0
    assert call("erase", "alice", erasure.request_id, line="support") == erasure
    assert len(feedback.log.records("erasure.requests")) == PARTITIONS
    second = call("erase", "bob", "q-1")
    feedback.complete_erasure("q-1")
    done = call("wait_for_erasure", second.request_id, timeout=10, poll=0.05)
    assert (done.status, done.versions, done.snapshots, done.signals) == ("done", (VERSION,), 2, PARTITIONS)
    assert done.partitions_done == done.partitions == PARTITIONS


def test_rejected_erasures_raise_their_own_errors(feedback: FeedbackFixture, call: CallClient) -> None:
    for key in (None, "another key", f"{feedback.key[:-1]}!"):
        with pytest.raises(Denied, match="LOOPWRIGHT_API_KEY"):
            call("erase", "alice", key=key)
    with pytest.raises(NotFound, match="q-404"):
        call("erasure", "q-404")
    with pytest.raises(Invalid, match="user_id"):
        call("erase", "")
    call("erase", "alice", "q-1")
    with pytest.raises(Conflict, match="new request_id"):
        call("erase", "bob", "q-1")


def test_command_line_erases_and_follows(feedback: FeedbackFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def loopwright(*arguments: str) -> Any:
        monkeypatch.setenv("LOOPWRIGHT_API_KEY", feedback.key)
        return CliRunner().invoke(cli, ["erase", *arguments, "--feedback-url", feedback.url])

    with Loopwright(feedback_url=feedback.url, api_key=feedback.key, retry=RETRY) as loop:
        loop.erase("someone")  # returns once the service is ready
    requested = loopwright("alice", "--request-id", "q-1", "--json")
    assert (requested.exit_code, json.loads(requested.stdout)["status"]) == (0, "requested")
    feedback.complete_erasure("q-1")
    awaited = loopwright("alice", "--request-id", "q-1", "--wait")
    assert (awaited.exit_code, awaited.stdout.split()[0]) == (0, "done")
    status = loopwright("--status", "q-1")
    assert VERSION in status.stdout
    missing = loopwright("--status", "q-404")
    assert missing.exit_code == 1
    assert "q-404" in missing.stderr
