"""A replay sends each dead letter back once: delivered twice, interrupted anywhere, handed to another process."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from services.feedback.dlq_replay_worker import DeadLetterReplayer
from services.feedback.outcome_lookup import OutcomeLookup
from services.feedback.views import OutcomeIndex
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import (
    InMemoryCache,
    InMemoryLog,
    InMemoryLogRanges,
    InMemoryLogReader,
    InMemoryPublisher,
)
from shared.commands import CommandResult, Replay, TrainNow
from shared.dead_letter_replay import parse_replay_mark
from shared.dead_letters import make_dead_letter
from shared.errors import BrokerUnavailable, Oversized
from shared.events import Outcome, OutcomeKind, Thumbs
from shared.ports import Acked
from shared.records import Output, Record

NOW = datetime(2026, 3, 4, tzinfo=UTC)


class Failing(InMemoryPublisher):
    """Fails after so many records have arrived, with or without the one that it fails at."""

    left = 1_000

    def publish(self, record: Output) -> Future[Acked]:
        if self.left <= 0:
            self.failure = BrokerUnavailable("away")
        self.left -= 1
        return super().publish(record)


class OneLife(threading.Event):
    """Instead of waiting to begin anew, it is over."""

    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return True


@dataclass
class Duty:
    """Gives each of `commands` once; then the test is over."""

    commands: list[Record]
    stopping: threading.Event
    fresh: bool = True
    kept: list[int] = field(default_factory=list)

    def poll(self, timeout: float) -> list[Record]:
        if self.commands:
            return [self.commands.pop(0)]
        self.stopping.set()
        return []

    def took_over(self) -> bool:
        fresh, self.fresh = self.fresh, False
        return fresh

    def keep(self, record: Record) -> None:
        self.kept.append(record.offset)

    def close(self) -> None:
        self.commands = []


class Stage:
    def __init__(self) -> None:
        self.clock = ManualClock(1_772_582_400_000)
        self.log = InMemoryLog(6, self.clock)
        self.duty: Duty | None = None

    def bury(self, topic: str = "feedback.events", key: bytes = b"r-1", value: bytes | None = b"{}") -> str:
        """A record of `topic` that died; returns the position of its dead letter."""
        at = self.log.append(Output(topic, key, value, (("ce_id", b"e"),)))[0]
        record = Record(at.topic, at.partition, at.offset, 5, key, value, (("ce_id", b"e"),))
        letter = make_dead_letter("dead.letters", record, Oversized("why"), "processor", 1_000_000)
        acked = self.log.append(letter)[0]
        return f"{acked.partition}-{acked.offset}"

    def give(self, *positions: str, command_id: str = "c-1") -> None:
        command = Replay(line="assistant", command_id=command_id, issued_at=NOW, positions=positions)
        self.log.append(Output("operator.commands", b"assistant", command.to_json()))

    def process(self, publisher: InMemoryPublisher | None = None) -> Duty:
        """One life of the service: reads all commands from the beginning, and ends when they are done, or fail."""
        stopping = OneLife()
        duty = Duty(self.log.records("operator.commands"), stopping)

        DeadLetterReplayer(
            open_duty=lambda: duty,
            open_results=lambda: InMemoryLogReader(self.log, ["operator.results"]),
            ranges=InMemoryLogRanges(self.log),
            publisher=publisher or InMemoryPublisher(self.log, "feedback"),
            clock=self.clock,
            ack_s=1.0,
        ).run(stopping)
        return duty

    def marks(self, topic: str = "feedback.events") -> list[tuple[str, str]]:
        found = [parse_replay_mark(record.headers) for record in self.log.records(topic)]
        return [mark for mark in found if mark is not None]

    def results(self) -> list[CommandResult]:
        return [CommandResult.from_json(record.value) for record in self.log.records("operator.results")]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_record_goes_back_as_it_was_and_the_result_says_so(stage: Stage) -> None:
    place = stage.bury(value=b"\xff")
    stage.give(place)
    stage.process()
    first, second = stage.log.records("feedback.events")
    assert (second.key, second.value, second.partition) == (first.key, first.value, first.partition)
    assert second.headers[: len(first.headers)] == first.headers
    assert parse_replay_mark(second.headers) == ("c-1", place)
    (result,) = stage.results()
    assert (result.status, result.message, result.executor) == (
        "done",
        "replayed 1 dead letter: 1 to feedback.events",
        "feedback",
    )
    assert result.replayed is not None
    assert (result.replayed.positions, result.replayed.topics) == ((place,), {"feedback.events": 1})


def test_a_command_that_is_delivered_twice_is_carried_out_once(stage: Stage) -> None:
    place = stage.bury()
    stage.give(place)
    stage.give(place)
    stage.process()
    stage.process()  # and once more by a successor that reads from the beginning
    assert stage.marks() == [("c-1", place)]
    assert len(stage.results()) == 1


@pytest.mark.parametrize("lost_acks", [False, True])
@pytest.mark.parametrize("arrived", range(6))
def test_an_interruption_anywhere_publishes_nothing_twice(
    stage: Stage, arrived: int, lost_acks: bool
) -> None:
    """I4's spirit for commands: five letters of two topics, the log away after each number of them."""
    placed = [
        stage.bury("chat.responses" if n % 2 else "feedback.events", b"r-%d" % n, b"%d" % n) for n in range(5)
    ]
    stage.give(*placed)
    publisher = Failing(stage.log, "feedback")
    publisher.left, publisher.lose_acks = arrived, lost_acks
    stage.process(publisher)
    stage.process()
    sent = stage.marks("feedback.events") + stage.marks("chat.responses")
    assert sorted(sent) == sorted(("c-1", place) for place in placed)
    results = stage.results()
    assert {result.message for result in results} == {
        "replayed 5 dead letters: 2 to chat.responses, 3 to feedback.events"
    }
    assert len(results) == 1


def test_a_letter_goes_back_once_whichever_command_names_it(stage: Stage) -> None:
    one, two = stage.bury(key=b"a"), stage.bury(key=b"b")
    stage.give(one, command_id="c-1")
    stage.process()
    stage.give(one, two, command_id="c-2")
    stage.process()
    assert sorted(stage.marks()) == sorted([("c-1", one), ("c-2", two)])
    assert stage.results()[-1].message == (
        "replayed 1 dead letter: 1 to feedback.events; not replayed: 1 replayed before"
    )


def test_what_cannot_go_back_is_told_and_holds_nothing_up(stage: Stage) -> None:
    batch = stage.bury("training.batches")
    gone = "2-999"
    good = stage.bury()
    stage.give(batch, gone, good, "feedback.events/2/41")
    stage.process()
    (result,) = stage.results()
    assert stage.marks() == [("c-1", good)]
    assert stage.marks("training.batches") == []
    assert "1 no longer there" in result.message
    assert "1 no position" in result.message
    assert "1 of a topic that only its own service writes" in result.message


def test_nothing_replayed_is_refused(stage: Stage) -> None:
    stage.give("0-5")
    stage.process()
    (result,) = stage.results()
    assert (result.status, result.message) == ("refused", "nothing was replayed: 1 no longer there")


def test_a_record_that_was_too_large_to_keep_stays(stage: Stage) -> None:
    record = Record("feedback.events", 0, 0, 5, b"k", b"v" * 9_000)
    acked = stage.log.append(make_dead_letter("dead.letters", record, Oversized("why"), "processor", 0))[0]
    stage.give(f"{acked.partition}-{acked.offset}")
    stage.process()
    assert stage.results()[0].message == "nothing was replayed: 1 too large to have been kept"


def test_a_command_of_the_day_before_yesterday_sends_nothing_more_but_accounts_for_what_it_sent(
    stage: Stage,
) -> None:
    one, two = stage.bury(key=b"a"), stage.bury(key=b"b")
    stage.give(one, two)
    publisher = Failing(stage.log, "feedback")
    publisher.left = 1
    stage.process(publisher)
    ((_, sent),) = stage.marks()
    stage.clock.advance(2 * 86_400.0)
    stage.process()
    assert stage.marks() == [("c-1", sent)]
    (result,) = stage.results()
    assert result.replayed is not None
    assert result.replayed.positions == (sent,)
    assert "1 not sent, for the command had waited for longer than a day: give it again" in result.message


def test_other_commands_and_unreadable_ones_are_passed_over(stage: Stage) -> None:
    train = TrainNow(line="assistant", command_id="c-0", issued_at=NOW)
    stage.log.append(
        Output("operator.commands", b"a", train.to_json()), Output("operator.commands", b"a", b"{")
    )
    duty = stage.process()
    assert stage.results() == []
    assert duty.kept == [0, 1]


def test_many_letters_far_apart_go_back(stage: Stage) -> None:
    placed = [stage.bury(key=b"r-%d" % n) for n in range(1_500)]
    chosen = placed[::7]
    stage.give(*chosen)
    stage.process()
    assert sorted(place for _, place in stage.marks()) == sorted(chosen)


# --- what the receipt of a dead event says ----------------------------------------------------------------------


def thumb() -> bytes:
    event = Thumbs(
        line="assistant", response_id="r-1", event_id="e-1", user_id="u_1", value="up", received_at=NOW
    )
    return event.to_json()


def looked_up(stage: Stage) -> Outcome | bool:
    history = OutcomeLookup(
        lambda topic, partition: InMemoryLogReader(stage.log, [topic], partitions=[partition]),
        partitions=6,
        timeout_s=5.0,
        slots=1,
    )
    return history.find("r-1", "e-1")


def test_a_dead_event_is_pending_again_once_it_went_back_and_dead_again_if_it_dies_again(
    stage: Stage,
) -> None:
    place = stage.bury(value=thumb())
    first = looked_up(stage)
    assert isinstance(first, Outcome)
    assert first.outcome == OutcomeKind.DEAD
    stage.give(place)
    stage.process()
    assert looked_up(stage) is True
    again = next(
        record for record in stage.log.records("feedback.events") if parse_replay_mark(record.headers)
    )
    stage.log.append(make_dead_letter("dead.letters", again, Oversized("still"), "processor", 1_000_000))
    second = looked_up(stage)
    assert isinstance(second, Outcome)
    assert (second.outcome, second.detail) == (OutcomeKind.DEAD, "still")


def test_that_an_event_died_gives_way_to_its_outcome_after_a_replay() -> None:
    clock = ManualClock()
    index = OutcomeIndex(InMemoryCache(clock), ttl_s=1_000.0, pending_ttl_s=5.0)

    def outcome(kind: OutcomeKind) -> Outcome:
        return Outcome(line="assistant", response_id="r-1", event_id="e-1", outcome=kind, decided_at=NOW)

    index.keep(outcome(OutcomeKind.DEAD))
    found = index.find("r-1", "e-1")
    assert isinstance(found, Outcome)
    clock.advance(6.0)
    assert index.find("r-1", "e-1") is False  # believed for a moment only: it may have gone back
    for kind in (OutcomeKind.DEAD, OutcomeKind.BATCHED, OutcomeKind.DEAD):
        index.keep(outcome(kind))
    assert index.find("r-1", "e-1") == outcome(OutcomeKind.BATCHED)
