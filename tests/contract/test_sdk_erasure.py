"""Both clients of the SDK, and the command line, against the door's own erasure routes over a log in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from typer.testing import CliRunner

from deploy.local.ports import choose
from loopwright import AsyncLoopwright, Conflict, Denied, Erasure, Invalid, Loopwright, NotFound, Retry
from loopwright.cli import app as cli
from services.feedback.api import add_erasure_routes
from services.feedback.core.erasure_status import ErasureStatus
from services.feedback.erasure_handler import ErasureHandler
from services.feedback.settings import FeedbackSettings
from services.feedback.views import ErasureStatusView
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

P = 3
T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
TOKEN = "the operator's own token"
VERSION = "assistant@v1-0a1b2c3d"
Ask = Callable[..., Any]


@dataclass
class Desk:
    log: InMemoryLog
    url: str

    def follow_up(self, request_id: str) -> None:
        """What processor and trainer report."""
        made = ErasureReport(
            line="assistant",
            request_id=request_id,
            subject="u_1",
            service="processor",
            partitions=P,
            signals=1,
            completed_at=T0,
        )
        last = made.model_copy(update={"service": "trainer", "versions": (VERSION,), "snapshots": 2})
        all_of = [made.model_copy(update={"partition": partition}) for partition in range(P)]
        self.log.append(*(Output("erasure.reports", b"k", one.to_json()) for one in [*all_of, last]))


@pytest.fixture
def desk() -> Iterator[Desk]:
    """The door's routes of erasure as they serve, on a port of their own."""
    clock = ManualClock(round(T0.timestamp() * 1000))
    log, readiness = InMemoryLog(P, clock), Readiness("erasures")
    eraser = ErasureHandler(
        settings=FeedbackSettings(partitions=P, erasure_token=SecretStr(TOKEN)),
        open_publisher=lambda: InMemoryTransactionalPublisher(log, "feedback", "door"),
        open_requests=lambda: InMemoryLogReader(log, ["erasure.requests"], partitions=[0]),
        cache=InMemoryCache(clock),
        clock=clock,
        pseudonymiser=Pseudonymiser(b"a key that is long enough"),
        erasures=ErasureStatusView(),
    )
    topics = ["erasure.requests", "erasure.reports"]
    follower = TopicFollower(
        "erasures", lambda: InMemoryLogReader(log, topics), eraser.erasures.apply, readiness, lambda: None
    )
    app = add_service_routes(FastAPI(), readiness)
    add_erasure_routes(app, eraser, follower)
    follower.start()
    port = choose({"feedback": 0})["feedback"]
    server = ServerThread(app, "127.0.0.1", port)
    server.start()
    yield Desk(log, f"http://127.0.0.1:{port}")
    server.stop()
    follower.stop()


RETRY = Retry(attempts=40, first_wait_s=0.05, longest_wait_s=0.1)


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, desk: Desk) -> Ask:
    """Calls a method of a client by its name."""

    def told(token: str | None) -> dict[str, Any]:
        return {"feedback_url": desk.url, "erasure_token": token, "retry": RETRY}

    def sync(method: str, *arguments: Any, token: str | None = TOKEN, **named: Any) -> Any:
        with Loopwright(**told(token)) as loop:
            return getattr(loop, method)(*arguments, **named)

    async def later(method: str, *arguments: Any, token: str | None, **named: Any) -> Any:
        async with AsyncLoopwright(**told(token)) as loop:
            return await getattr(loop, method)(*arguments, **named)

    def run(method: str, *arguments: Any, token: str | None = TOKEN, **named: Any) -> Any:
        return asyncio.run(later(method, *arguments, token=token, **named))

    return sync if request.param == "sync" else run


def test_every_field_of_an_erasure_has_its_place() -> None:
    assert set(ErasureStatus.model_fields) == set(Erasure.model_fields)


def test_a_user_is_erased_and_followed_until_it_is_done(desk: Desk, ask: Ask) -> None:
    given = ask("erase", "alice", line="support")
    assert (given.status, given.line, given.overdue) == ("requested", "support", False)
    assert given.deadline > given.requested_at == T0
    assert ask("erase", "alice", given.request_id, line="support") == given
    assert len(desk.log.records("erasure.requests")) == P
    asked = ask("erase", "bob", "q-1")
    desk.follow_up("q-1")
    done = ask("wait_for_erasure", asked.request_id, timeout=10, poll=0.05)
    assert (done.status, done.versions, done.snapshots, done.signals) == ("done", (VERSION,), 2, P)
    assert done.partitions_done == done.partitions == P


def test_what_the_door_refuses_is_an_error_of_its_own(ask: Ask) -> None:
    for token in (None, "another token of some length"):
        with pytest.raises(Denied, match="LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN"):
            ask("erase", "alice", token=token)
    with pytest.raises(NotFound, match="q-404"):
        ask("erasure", "q-404")
    with pytest.raises(Invalid, match="user_id"):
        ask("erase", "")
    ask("erase", "alice", "q-1")
    with pytest.raises(Conflict, match="new request_id"):
        ask("erase", "bob", "q-1")


def test_the_command_line_erases_and_follows(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def loopwright(*arguments: str) -> Any:
        monkeypatch.setenv("LOOPWRIGHT_FEEDBACK_ERASURE_TOKEN", TOKEN)
        return CliRunner().invoke(cli, ["erase", *arguments, "--feedback-url", desk.url])

    with Loopwright(feedback_url=desk.url, erasure_token=TOKEN, retry=RETRY) as loop:
        loop.erase("somebody")  # the door is ready
    asked = loopwright("alice", "--request-id", "q-1", "--json")
    assert (asked.exit_code, json.loads(asked.stdout)["status"]) == (0, "requested")
    desk.follow_up("q-1")
    waited = loopwright("alice", "--request-id", "q-1", "--wait")
    assert (waited.exit_code, waited.stdout.split()[0]) == (0, "done")
    shown = loopwright("--status", "q-1")
    assert VERSION in shown.stdout
    missing = loopwright("--status", "q-404")
    assert missing.exit_code == 1
    assert "q-404" in missing.stderr
