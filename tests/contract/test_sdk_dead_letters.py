"""Both clients of the SDK, and the command line, against the console's own routes over a log in memory."""

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

from deploy.local.ports import choose
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
from shared.commands import COMMAND, Replay
from shared.dead_letters import make_dead_letter
from shared.errors import Malformed, Oversized
from shared.events import parse_union
from shared.records import Output, Record
from shared.telemetry import Readiness

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
Ask = Callable[..., Any]
"""Calls a method of a client by its name."""


@dataclass
class Desk:
    log: InMemoryLog
    clock: ManualClock
    url: str

    def bury(self, value: bytes, *, topic: str = "feedback.events", malformed: bool = False) -> str:
        """A minute after the one before; returns its position."""
        self.clock.advance(60.0)
        error = Malformed("not JSON") if malformed else Oversized("too much")
        record = Record(topic, 2, 41, 1_772_366_000_000, b"r-1", value, (("ce_id", b"e-1"),))
        acked = self.log.append(make_dead_letter("dead.letters", record, error, "processor", 1_000_000))[0]
        return f"{acked.partition}-{acked.offset}"

    def carry_out(self) -> Replay:
        """Answers the one command on the log as its executor does."""
        (record,) = self.log.records("operator.commands")
        command = parse_union(COMMAND, record.value)
        assert isinstance(command, Replay)
        account = ReplayReport(dict.fromkeys(command.positions, "feedback.events"))
        made = command_result(command, account, "feedback", T0)
        self.log.append(Output("operator.results", b"k", made.to_json()))
        return command


@pytest.fixture
def desk() -> Iterator[Desk]:
    """The console as it serves, on a port of its own."""
    clock = ManualClock(round(T0.timestamp() * 1000))
    log, readiness = InMemoryLog(6, clock), Readiness("log")
    console = ConsoleBackend(
        ConsoleSettings(), InMemoryPublisher(log, "console"), InMemoryCache(clock), clock, lambda: 0
    )
    topics = [topic.name for topic in FOLLOWED_TOPICS]
    follower = TopicFollower(
        "log", lambda: InMemoryLogReader(log, topics), console.apply, readiness, lambda: None
    )
    app = build_app(console, follower, readiness)
    add_dead_letter_routes(app, console, follower, DeadLetterReader(InMemoryLogRanges(log)))
    port = choose({"console": 0})["console"]
    server = ServerThread(app, "127.0.0.1", port)
    server.start()
    follower.start()
    yield Desk(log, clock, f"http://127.0.0.1:{port}")
    follower.stop()
    server.stop()


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest, desk: Desk) -> Ask:
    retry = Retry(attempts=40, first_wait_s=0.05, longest_wait_s=0.1)

    def sync(method: str, *arguments: Any, **named: Any) -> Any:
        with Loopwright(console_url=desk.url, retry=retry) as loop:
            return getattr(loop, method)(*arguments, **named)

    async def later(method: str, *arguments: Any, **named: Any) -> Any:
        async with AsyncLoopwright(console_url=desk.url, retry=retry) as loop:
            return await getattr(loop, method)(*arguments, **named)

    def run(method: str, *arguments: Any, **named: Any) -> Any:
        return asyncio.run(later(method, *arguments, **named))

    return sync if request.param == "sync" else run


def test_dead_letters_are_listed_newest_first_with_their_origin(desk: Desk, ask: Ask) -> None:
    first, second = desk.bury(b"{}"), desk.bury(b"\xff\x00", malformed=True)
    page = ask("dead_letters")
    assert [letter.position for letter in page.dead_letters] == [second, first]
    assert page.next is None
    newest = page.dead_letters[0]
    assert (newest.error_class, newest.message, newest.service) == ("malformed", "not JSON", "processor")
    assert (newest.topic, newest.partition, newest.offset, newest.bytes) == ("feedback.events", 2, 41, 5)
    assert newest.at == T0 + timedelta(minutes=2)
    assert newest.appended_at == datetime(2026, 3, 1, 11, 53, 20, tzinfo=UTC)


def test_filters_reach_the_console(desk: Desk, ask: Ask) -> None:
    first, second = desk.bury(b"{}"), desk.bury(b"{}", malformed=True, topic="chat.responses")
    wanted: list[tuple[dict[str, Any], list[str]]] = [
        ({"error_class": "malformed"}, [second]),
        ({"topic": "feedback.events"}, [first]),
        ({"since": T0 + timedelta(minutes=2)}, [second]),
        ({"until": T0 + timedelta(minutes=2)}, [first]),
        ({"replayed": True}, []),
        ({"replayed": False, "error_class": "oversized"}, [first]),
    ]
    for filters, positions in wanted:
        assert [each.position for each in ask("dead_letters", **filters).dead_letters] == positions, filters


def test_pages_follow_each_other(desk: Desk, ask: Ask) -> None:
    buried = [desk.bury(b"%d" % n) for n in range(5)]
    found: list[str] = []
    page = ask("dead_letters", limit=2)
    while True:
        found += [letter.position for letter in page.dead_letters]
        if page.next is None:
            break
        page = ask("dead_letters", limit=2, cursor=page.next)
    assert found == buried[::-1]


def test_one_is_shown_with_its_bytes_as_text_or_hex(desk: Desk, ask: Ask) -> None:
    text, raw = ask("dead_letter", desk.bury("é{".encode())), ask("dead_letter", desk.bury(b"\xff\x00"))
    assert (text.value.encoding, text.value.data) == ("text", "é{")
    assert (raw.value.encoding, raw.value.data, raw.value.bytes) == ("hex", "ff00", 2)
    assert (raw.key.data, raw.headers[0][0], raw.headers[0][1].data) == ("r-1", "ce_id", "e-1")


def test_what_is_shown_is_bounded(desk: Desk, ask: Ask) -> None:
    shown = ask("dead_letter", desk.bury("é".encode() * 100_000)).value
    assert (shown.bytes, shown.truncated, shown.encoding) == (200_000, True, "text")
    assert len(shown.data.encode()) == 65_536
    # A character that the bound cuts in two makes no text into bytes.
    assert ask("dead_letter", desk.bury(b"x" + "é".encode() * 100_000)).value.encoding == "text"


def test_what_is_not_there_or_no_position_is_an_error_of_its_own(desk: Desk, ask: Ask) -> None:
    with pytest.raises(NotFound, match="no dead letter at 3-1042"):
        ask("dead_letter", "3-1042")
    with pytest.raises(Invalid, match="position"):
        ask("dead_letter", "nonsense")
    with pytest.raises(Invalid, match="limit"):
        ask("dead_letters", limit=1_000)
    with pytest.raises(Invalid):
        ask("dead_letters", cursor="nonsense")


def test_a_moment_without_a_time_zone_is_refused_before_asking(ask: Ask) -> None:
    with pytest.raises(ValueError, match="since has no time zone"):
        ask("dead_letters", since=datetime(2026, 3, 1))  # noqa: DTZ001 - the point of it


def test_a_replay_is_a_command_whose_result_says_how_many_went_back(desk: Desk, ask: Ask) -> None:
    positions = [desk.bury(b"1"), desk.bury(b"2")]
    given = ask("replay", positions)
    assert ask("result", given.command_id) is None
    assert list(desk.carry_out().positions) == positions
    result = ask("wait_for_result", given.command_id, timeout=10, poll=0.05)
    assert (result.status, result.replayed) == ("done", 2)
    assert ask("dead_letters", replayed=False).dead_letters == ()
    assert ask("dead_letter", positions[0]).replayed_by == given.command_id


# --- the command line over the same console --------------------------------------------------------------------


def loopwright(desk: Desk, *arguments: str, ready: bool = True) -> Result:
    if ready:
        with Loopwright(console_url=desk.url, retry=Retry(40, 0.05, 0.1)) as loop:
            loop.dead_letters()
    return CliRunner().invoke(cli, ["dead-letters", *arguments, "--console-url", desk.url])


def test_the_list_is_a_table_or_json(desk: Desk) -> None:
    assert loopwright(desk, "list").stdout == "no dead letters\n"
    first, second = desk.bury(b"{}"), desk.bury(b"{}", malformed=True)
    shown = loopwright(desk, "list").stdout.splitlines()
    assert [line.split()[0] for line in shown] == ["position", second, first]
    assert "malformed" in shown[1]
    assert "feedback.events 2-41" in shown[1]
    told = json.loads(loopwright(desk, "list", "--json", "--class", "oversized").stdout)
    assert [letter["position"] for letter in told] == [first]
    assert "more with --limit" in loopwright(desk, "list", "--limit", "1").stdout


def test_one_is_shown_whole_and_cannot_steer_the_terminal(desk: Desk) -> None:
    shown = loopwright(desk, "show", desk.bury(b"\x1b[2Jhello [bold]")).stdout
    assert "\\x1b[2Jhello [bold]" in shown
    assert "too much" in shown
    assert json.loads(loopwright(desk, "show", desk.bury(b"\xff"), "--json").stdout)["value"]["data"] == "ff"


def test_a_dry_run_says_what_would_go_back_and_orders_nothing(desk: Desk) -> None:
    first, _ = desk.bury(b"{}"), desk.bury(b"{}", malformed=True)
    by_class = loopwright(desk, "replay", "--class", "oversized", "--dry-run")
    assert (by_class.exit_code, by_class.stdout.splitlines()[-1]) == (0, "1 dead letter would be replayed")
    told = json.loads(loopwright(desk, "replay", first, "--dry-run", "--json").stdout)
    assert ([letter["position"] for letter in told["would_replay"]], told["more"]) == ([first], False)
    assert desk.log.records("operator.commands") == []


def test_without_a_terminal_nothing_goes_back_unless_yes_is_said(desk: Desk) -> None:
    place = desk.bury(b"{}")
    asked = loopwright(desk, "replay", place)
    assert asked.exit_code == 2
    assert "--yes" in asked.stderr
    assert desk.log.records("operator.commands") == []


@pytest.mark.parametrize("said", ["n\n", "y\n"])
def test_on_a_terminal_a_person_is_asked(desk: Desk, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = desk.bury(b"{}")
    loopwright(desk, "list")
    monkeypatch.setattr("loopwright.cli.common.at_terminal", lambda: True)
    arguments = ["dead-letters", "replay", place, "--no-wait", "--console-url", desk.url]
    answered = CliRunner().invoke(cli, arguments, input=said)
    assert "Replay 1 dead letter?" in answered.stderr
    assert (answered.exit_code == 0) == (said == "y\n")
    assert len(desk.log.records("operator.commands")) == (said == "y\n")


@pytest.mark.parametrize("arguments", [[], ["--all", "3-1"], ["3-1", "--class", "oversized"]])
def test_it_must_be_said_which(desk: Desk, arguments: list[str]) -> None:
    assert loopwright(desk, "replay", *arguments, "--yes", ready=False).exit_code == 2


def test_a_replay_waits_and_says_how_many_went_back(desk: Desk) -> None:
    positions = [desk.bury(b"1"), desk.bury(b"2")]
    loopwright(desk, "list")
    given = threading.Event()

    def executor() -> None:
        while not desk.log.records("operator.commands"):
            given.wait(0.05)
        carried_out.append(desk.carry_out())

    carried_out: list[Replay] = []
    thread = threading.Thread(target=executor)
    thread.start()
    told = loopwright(desk, "replay", "--all", "--yes", "--wait")
    thread.join()
    assert (told.exit_code, told.stdout) == (0, "done replayed 2 dead letters: 2 to feedback.events\n")
    assert carried_out[0].positions == tuple(reversed(positions))
    assert loopwright(desk, "replay", "--all", "--yes").stdout == "nothing to replay\n"


@pytest.mark.parametrize("text", ["yesterday", "3w", "-1h", "2026-13-01"])
def test_a_time_that_is_none_is_wrong_usage(desk: Desk, text: str) -> None:
    assert loopwright(desk, "list", f"--since={text}", ready=False).exit_code == 2


def test_times_may_be_given_as_ago_or_as_a_date(desk: Desk) -> None:
    place = desk.bury(b"{}")
    assert place in loopwright(desk, "list", "--since", "2026-03-01").stdout
    assert place not in loopwright(desk, "list", "--until", "2026-02-01T00:00:00+00:00").stdout
    assert place in loopwright(desk, "list", "--until", "30m").stdout or datetime.now(UTC) < T0
