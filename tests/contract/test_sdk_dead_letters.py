"""Dead letters: both clients and the command line against the console's routes, over an in-memory log."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from deploy.local.ports import choose_ports
from loopwright import AsyncLoopwright, Invalid, Loopwright, NotFound, Retry
from loopwright.cli import app as cli
from services.console.api.dead_letter_routes import add_dead_letter_routes
from services.console.api.routes import build_app
from services.console.backend import ConsoleBackend
from services.console.core.projection import FOLLOWED_TOPICS
from services.console.dead_letter_query import DeadLetterReader
from services.console.settings import ConsoleSettings
from services.feedback.core.dlq_replay_rules import ReplayReport, command_result
from shared.adapters.clock import ManualClock
from shared.adapters.http import ServerThread
from shared.adapters.in_memory import (
    InMemoryCache,
    InMemoryLog,
    InMemoryLogRanges,
    InMemoryLogReader,
    InMemoryPublisher,
)
from shared.adapters.topic_follower import TopicFollower
from shared.commands import COMMAND, Replay, Skip
from shared.dead_letters import make_dead_letter
from shared.errors import Malformed, Oversized
from shared.events import parse_union
from shared.records import Output, Record
from shared.telemetry import Readiness

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
CallClient = Callable[..., Any]
"""Calls the named method of a client."""


@dataclass
class ConsoleFixture:
    log: InMemoryLog
    clock: ManualClock
    url: str

    def add_dead_letter(
        self, value: bytes, *, topic: str = "feedback.events", malformed: bool = False
    ) -> str:
        """Add a dead letter one minute after the previous one, and return its position."""
        self.clock.advance(60.0)
        error = Malformed("not JSON") if malformed else Oversized("too much")
        record = Record(topic, 2, 41, 1_772_366_000_000, b"r-1", value, (("ce_id", b"e-1"),))
        acked = self.log.append(make_dead_letter("dead.letters", record, error, "processor", 1_000_000))[0]
        return f"{acked.partition}-{acked.offset}"

    def execute_command(self) -> Replay:
        """Execute the only command on the log as its executor would, and return it."""
        (record,) = self.log.records("operator.commands")
        command = parse_union(COMMAND, record.value)
        assert isinstance(command, Replay)
        report = ReplayReport(dict.fromkeys(command.positions, "feedback.events"))
        result = command_result(command, report, "feedback", T0)
        self.log.append(Output("operator.results", b"k", result.to_json()))
        return command


@pytest.fixture
def console() -> Iterator[ConsoleFixture]:
    """Serve the console on a free port."""
    clock = ManualClock(round(T0.timestamp() * 1000))
    log, readiness = InMemoryLog(6, clock), Readiness("log")
    backend = ConsoleBackend(
        ConsoleSettings(), InMemoryPublisher(log, "console"), InMemoryCache(clock), clock, lambda: 0
    )
    topics = [topic.name for topic in FOLLOWED_TOPICS]
    follower = TopicFollower(
        "log", lambda: InMemoryLogReader(log, topics), backend.apply, readiness, lambda: None
    )
    app = build_app(backend, follower, readiness)
    add_dead_letter_routes(app, backend, follower, DeadLetterReader(InMemoryLogRanges(log)))
    port = choose_ports({"console": 0})["console"]
    server = ServerThread(app, "127.0.0.1", port)
    server.start()
    follower.start()
    yield ConsoleFixture(log, clock, f"http://127.0.0.1:{port}")
    follower.stop()
    server.stop()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, console: ConsoleFixture) -> CallClient:
    retry = Retry(attempts=40, first_wait_s=0.05, longest_wait_s=0.1)

    def call_sync(method: str, *arguments: Any, **named: Any) -> Any:
        with Loopwright(console_url=console.url, retry=retry) as loop:
            return getattr(loop, method)(*arguments, **named)

    async def run_async(method: str, *arguments: Any, **named: Any) -> Any:
        async with AsyncLoopwright(console_url=console.url, retry=retry) as loop:
            return await getattr(loop, method)(*arguments, **named)

    def call_async(method: str, *arguments: Any, **named: Any) -> Any:
        return asyncio.run(run_async(method, *arguments, **named))

    return call_sync if request.param == "sync" else call_async


def test_dead_letters_are_listed_newest_first_with_origin(console: ConsoleFixture, call: CallClient) -> None:
    first, second = console.add_dead_letter(b"{}"), console.add_dead_letter(b"\xff\x00", malformed=True)
    page = call("dead_letters")
    assert [letter.position for letter in page.dead_letters] == [second, first]
    assert page.next is None
    newest = page.dead_letters[0]
    assert (newest.error_class, newest.message, newest.service) == ("malformed", "not JSON", "processor")
    assert (newest.topic, newest.partition, newest.offset, newest.bytes) == ("feedback.events", 2, 41, 5)
    assert newest.at == T0 + timedelta(minutes=2)
    assert newest.appended_at == datetime(2026, 3, 1, 11, 53, 20, tzinfo=UTC)


def test_filters_reach_the_console(console: ConsoleFixture, call: CallClient) -> None:
    first, second = (
        console.add_dead_letter(b"{}"),
        console.add_dead_letter(b"{}", malformed=True, topic="chat.responses"),
    )
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"error_class": "malformed"}, [second]),
        ({"topic": "feedback.events"}, [first]),
        ({"since": T0 + timedelta(minutes=2)}, [second]),
        ({"until": T0 + timedelta(minutes=2)}, [first]),
        ({"replayed": True}, []),
        ({"replayed": False, "error_class": "oversized"}, [first]),
    ]
    for filters, positions in cases:
        assert [letter.position for letter in call("dead_letters", **filters).dead_letters] == positions, (
            filters
        )


def test_cursor_returns_the_next_page(console: ConsoleFixture, call: CallClient) -> None:
    positions = [console.add_dead_letter(b"%d" % n) for n in range(5)]
    listed: list[str] = []
    page = call("dead_letters", limit=2)
    while True:
        listed += [letter.position for letter in page.dead_letters]
        if page.next is None:
            break
        page = call("dead_letters", limit=2, cursor=page.next)
    assert listed == positions[::-1]


def test_content_is_returned_as_text_or_hex(console: ConsoleFixture, call: CallClient) -> None:
    text, raw = (
        call("dead_letter", console.add_dead_letter("é{".encode())),
        call("dead_letter", console.add_dead_letter(b"\xff\x00")),
    )
    assert (text.value.encoding, text.value.data) == ("text", "é{")
    assert (raw.value.encoding, raw.value.data, raw.value.bytes) == ("hex", "ff00", 2)
    assert (raw.key.data, raw.headers[0][0], raw.headers[0][1].data) == ("r-1", "ce_id", "e-1")


def test_returned_content_is_bounded(console: ConsoleFixture, call: CallClient) -> None:
    value = call("dead_letter", console.add_dead_letter("é".encode() * 100_000)).value
    assert (value.bytes, value.truncated, value.encoding) == (200_000, True, "text")
    assert len(value.data.encode()) == 65_536
    # A character that is cut in two at the limit does not turn text into hex.
    assert (
        call("dead_letter", console.add_dead_letter(b"x" + "é".encode() * 100_000)).value.encoding == "text"
    )


def test_unknown_and_invalid_positions_raise_different_errors(
    console: ConsoleFixture, call: CallClient
) -> None:
    with pytest.raises(NotFound, match="no dead letter at 3-1042"):
        call("dead_letter", "3-1042")
    with pytest.raises(Invalid, match="position"):
        call("dead_letter", "nonsense")
    with pytest.raises(Invalid, match="limit"):
        call("dead_letters", limit=1_000)
    with pytest.raises(Invalid):
        call("dead_letters", cursor="nonsense")


def test_time_without_time_zone_is_rejected_before_sending(call: CallClient) -> None:
    with pytest.raises(ValueError, match="since has no time zone"):
        call("dead_letters", since=datetime(2026, 3, 1))  # noqa: DTZ001 - rejected by the client


def test_result_of_a_replay_counts_replayed_dead_letters(console: ConsoleFixture, call: CallClient) -> None:
    positions = [console.add_dead_letter(b"1"), console.add_dead_letter(b"2")]
    command = call("replay", positions)
    assert call("result", command.command_id) is None
    assert list(console.execute_command().positions) == positions
    result = call("wait_for_result", command.command_id, timeout=10, poll=0.05)
    assert (result.status, result.replayed) == ("done", 2)
    assert call("dead_letters", replayed=False).dead_letters == ()
    assert call("dead_letter", positions[0]).replayed_by == command.command_id


def test_skip_is_a_command_with_its_record_and_reason(console: ConsoleFixture, call: CallClient) -> None:
    command = call("skip", "feedback.events", 3, 1042, "wrong data of an import")
    (record,) = console.log.records("operator.commands")
    skip = parse_union(COMMAND, record.value)
    assert isinstance(skip, Skip)
    assert (skip.command_id, skip.topic, skip.partition, skip.offset, skip.reason) == (
        command.command_id,
        "feedback.events",
        3,
        1042,
        "wrong data of an import",
    )


# --- the command line ----------------------------------------------------------------------------------------


def loopwright(console: ConsoleFixture, *arguments: str, ready: bool = True) -> Result:
    if ready:
        with Loopwright(console_url=console.url, retry=Retry(40, 0.05, 0.1)) as loop:
            loop.dead_letters()
    return CliRunner().invoke(cli, ["dead-letters", *arguments, "--console-url", console.url])


def test_list_is_printed_as_table_or_json(console: ConsoleFixture) -> None:
    assert loopwright(console, "list").stdout == "no dead letters\n"
    first, second = console.add_dead_letter(b"{}"), console.add_dead_letter(b"{}", malformed=True)
    shown = loopwright(console, "list").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["position", second, first]
    assert "malformed" in shown[1]
    assert "feedback.events 2-41" in shown[1]
    printed = json.loads(loopwright(console, "list", "--json", "--class", "oversized").stdout)
    assert [letter["position"] for letter in printed] == [first]
    assert "more with --limit" in loopwright(console, "list", "--limit", "1").stdout


def test_show_escapes_control_characters(console: ConsoleFixture) -> None:
    shown = loopwright(console, "show", console.add_dead_letter(b"\x1b[2Jhello [bold]")).stdout
    assert "\\x1b[2Jhello [bold]" in shown
    assert "too much" in shown
    assert (
        json.loads(loopwright(console, "show", console.add_dead_letter(b"\xff"), "--json").stdout)["value"][
            "data"
        ]
        == "ff"
    )


def test_dry_run_prints_the_plan_and_sends_no_command(console: ConsoleFixture) -> None:
    first, _ = console.add_dead_letter(b"{}"), console.add_dead_letter(b"{}", malformed=True)
    by_class = loopwright(console, "replay", "--class", "oversized", "--dry-run")
    assert (by_class.exit_code, by_class.stdout.splitlines()[-1]) == (0, "1 dead letter would be replayed")
    printed = json.loads(loopwright(console, "replay", first, "--dry-run", "--json").stdout)
    assert ([letter["position"] for letter in printed["would_replay"]], printed["more"]) == ([first], False)
    assert console.log.records("operator.commands") == []


def test_replay_without_terminal_needs_yes(console: ConsoleFixture) -> None:
    position = console.add_dead_letter(b"{}")
    result = loopwright(console, "replay", position)
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert console.log.records("operator.commands") == []


@pytest.mark.parametrize("reply", ["n\n", "y\n"])
def test_replay_asks_for_confirmation_on_a_terminal(
    console: ConsoleFixture, reply: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    position = console.add_dead_letter(b"{}")
    loopwright(console, "list")
    monkeypatch.setattr("loopwright.cli.common.is_interactive", lambda: True)
    arguments = ["dead-letters", "replay", position, "--no-wait", "--console-url", console.url]
    result = CliRunner().invoke(cli, arguments, input=reply)
    assert "Replay 1 dead letter?" in result.stderr
    assert (result.exit_code == 0) == (reply == "y\n")
    assert len(console.log.records("operator.commands")) == (reply == "y\n")


@pytest.mark.parametrize("arguments", [[], ["--all", "3-1"], ["3-1", "--class", "oversized"]])
def test_replay_needs_positions_or_filters(console: ConsoleFixture, arguments: list[str]) -> None:
    assert loopwright(console, "replay", *arguments, "--yes", ready=False).exit_code == 2


def test_replay_waits_and_prints_the_result(console: ConsoleFixture) -> None:
    positions = [console.add_dead_letter(b"1"), console.add_dead_letter(b"2")]
    loopwright(console, "list")
    pause = threading.Event()

    def executor() -> None:
        while not console.log.records("operator.commands"):
            pause.wait(0.05)
        executed.append(console.execute_command())

    executed: list[Replay] = []
    thread = threading.Thread(target=executor)
    thread.start()
    result = loopwright(console, "replay", "--all", "--yes", "--wait")
    thread.join()
    assert (result.exit_code, result.stdout) == (0, "done replayed 2 dead letters: 2 to feedback.events\n")
    assert executed[0].positions == tuple(reversed(positions))
    assert loopwright(console, "replay", "--all", "--yes").stdout == "nothing to replay\n"


def test_skip_from_the_command_line_needs_a_reason_and_a_confirmation(console: ConsoleFixture) -> None:
    skip = ["skip", "feedback.events", "3-1042", "--no-wait"]
    assert loopwright(console, *skip, "--yes").exit_code == 2
    refused = loopwright(console, *skip, "--reason", "an import")
    assert (refused.exit_code, "--yes" in refused.stderr) == (2, True)
    assert loopwright(console, "skip", "feedback.events", "3/1042", "--reason", "x", "--yes").exit_code == 2
    assert console.log.records("operator.commands") == []
    assert loopwright(console, *skip, "--reason", "an import", "--yes").exit_code == 0
    assert len(console.log.records("operator.commands")) == 1


@pytest.mark.parametrize("text", ["yesterday", "3w", "-1h", "2026-13-01"])
def test_invalid_time_is_a_usage_error(console: ConsoleFixture, text: str) -> None:
    assert loopwright(console, "list", f"--since={text}", ready=False).exit_code == 2


def test_time_can_be_an_age_or_a_date(console: ConsoleFixture) -> None:
    position = console.add_dead_letter(b"{}")
    assert position in loopwright(console, "list", "--since", "2026-03-01").stdout
    assert position not in loopwright(console, "list", "--until", "2026-02-01T00:00:00+00:00").stdout
    assert position in loopwright(console, "list", "--until", "30m").stdout or datetime.now(UTC) < T0
