"""A replay sends each dead letter back once: delivered twice, interrupted anywhere, handed to another process."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from services.feedback.core.receipts import NoOutcome
from services.feedback.dlq_replay_worker import DeadLetterReplayer
from services.feedback.receipt_index import INDEXED_TOPICS, ReceiptIndex
from shared.adapters.clock import ManualClock
from shared.adapters.in_memory import (
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
from shared.stream.state_store import MemoryStore

NOW = datetime(2026, 3, 4, tzinfo=UTC)


class FailingPublisher(InMemoryPublisher):
    """Fails after `remaining` records; whether the failing record arrives is up to `lose_acks`."""

    remaining = 1_000

    def publish(self, record: Output) -> Future[Acked]:
        if self.remaining <= 0:
            self.failure = BrokerUnavailable("away")
        self.remaining -= 1
        return super().publish(record)


class StopInsteadOfWaiting(threading.Event):
    """A stop event that is set when the worker would wait before it starts over."""

    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return True


@dataclass
class ListConsumer:
    """`CommandConsumer` that delivers each of `commands` once and then stops the worker."""

    commands: list[Record]
    stopping: threading.Event
    assigned: bool = True
    committed: list[int] = field(default_factory=list)

    def poll(self, timeout: float) -> list[Record]:
        if self.commands:
            return [self.commands.pop(0)]
        self.stopping.set()
        return []

    def newly_assigned(self) -> bool:
        assigned, self.assigned = self.assigned, False
        return assigned

    def commit(self, record: Record) -> None:
        self.committed.append(record.offset)

    def close(self) -> None:
        self.commands = []


class ReplayRig:
    """A replayer over a log in memory."""

    def __init__(self) -> None:
        self.clock = ManualClock(1_772_582_400_000)
        self.log = InMemoryLog(6, self.clock)

    def add_dead_letter(
        self, topic: str = "feedback.events", key: bytes = b"r-1", value: bytes | None = b"{}"
    ) -> str:
        """Write a record and its dead letter; return the position of the dead letter."""
        at = self.log.append(Output(topic, key, value, (("ce_id", b"e"),)))[0]
        record = Record(at.topic, at.partition, at.offset, 5, key, value, (("ce_id", b"e"),))
        letter = make_dead_letter("dead.letters", record, Oversized("why"), "processor", 1_000_000)
        acked = self.log.append(letter)[0]
        return f"{acked.partition}-{acked.offset}"

    def command(self, *positions: str, command_id: str = "c-1") -> None:
        command = Replay(line="assistant", command_id=command_id, issued_at=NOW, positions=positions)
        self.log.append(Output("operator.commands", b"assistant", command.to_json()))

    def run_process(self, publisher: InMemoryPublisher | None = None) -> ListConsumer:
        """Run one process: it reads all commands from the beginning, until they are done or one fails."""
        stopping = StopInsteadOfWaiting()
        consumer = ListConsumer(self.log.records("operator.commands"), stopping)
        DeadLetterReplayer(
            open_consumer=lambda: consumer,
            open_results=lambda: InMemoryLogReader(self.log, ["operator.results"]),
            ranges=InMemoryLogRanges(self.log),
            publisher=publisher or InMemoryPublisher(self.log, "feedback"),
            clock=self.clock,
            ack_timeout_s=1.0,
        ).run(stopping)
        return consumer

    def replay_marks(self, topic: str = "feedback.events") -> list[tuple[str, str]]:
        marks = [parse_replay_mark(record.headers) for record in self.log.records(topic)]
        return [mark for mark in marks if mark is not None]

    def results(self) -> list[CommandResult]:
        return [CommandResult.from_json(record.value) for record in self.log.records("operator.results")]


@pytest.fixture
def rig() -> ReplayRig:
    return ReplayRig()


def test_replayed_record_is_unchanged_and_reported(rig: ReplayRig) -> None:
    position = rig.add_dead_letter(value=b"\xff")
    rig.command(position)
    rig.run_process()
    first, second = rig.log.records("feedback.events")
    assert (second.key, second.value, second.partition) == (first.key, first.value, first.partition)
    assert second.headers[: len(first.headers)] == first.headers
    assert parse_replay_mark(second.headers) == ("c-1", position)
    (result,) = rig.results()
    assert (result.status, result.message, result.executor) == (
        "done",
        "replayed 1 dead letter: 1 to feedback.events",
        "feedback",
    )
    assert result.replayed is not None
    assert (result.replayed.positions, result.replayed.topics) == ((position,), {"feedback.events": 1})


def test_command_delivered_twice_is_executed_once(rig: ReplayRig) -> None:
    position = rig.add_dead_letter()
    rig.command(position)
    rig.command(position)
    rig.run_process()
    rig.run_process()  # once more, by a successor that reads from the beginning
    assert rig.replay_marks() == [("c-1", position)]
    assert len(rig.results()) == 1


@pytest.mark.parametrize("lost_acks", [False, True])
@pytest.mark.parametrize("arrived", range(6))
def test_interruption_anywhere_publishes_nothing_twice(rig: ReplayRig, arrived: int, lost_acks: bool) -> None:
    """Invariant I4, for commands: five letters of two topics, with Kafka away after each number of them."""
    positions = [
        rig.add_dead_letter("chat.responses" if n % 2 else "feedback.events", b"r-%d" % n, b"%d" % n)
        for n in range(5)
    ]
    rig.command(*positions)
    publisher = FailingPublisher(rig.log, "feedback")
    publisher.remaining, publisher.lose_acks = arrived, lost_acks
    rig.run_process(publisher)
    rig.run_process()
    sent = rig.replay_marks("feedback.events") + rig.replay_marks("chat.responses")
    assert sorted(sent) == sorted(("c-1", position) for position in positions)
    results = rig.results()
    assert {result.message for result in results} == {
        "replayed 5 dead letters: 2 to chat.responses, 3 to feedback.events"
    }
    assert len(results) == 1


def test_letter_is_replayed_once_by_any_command(rig: ReplayRig) -> None:
    first, second = rig.add_dead_letter(key=b"a"), rig.add_dead_letter(key=b"b")
    rig.command(first, command_id="c-1")
    rig.run_process()
    rig.command(first, second, command_id="c-2")
    rig.run_process()
    assert sorted(rig.replay_marks()) == sorted([("c-1", first), ("c-2", second)])
    assert rig.results()[-1].message == (
        "replayed 1 dead letter: 1 to feedback.events; not replayed: 1 already replayed"
    )


def test_skipped_letters_are_reported_and_block_no_other(rig: ReplayRig) -> None:
    foreign = rig.add_dead_letter("training.batches")
    missing = "2-999"
    valid = rig.add_dead_letter()
    rig.command(foreign, missing, valid, "feedback.events/2/41")
    rig.run_process()
    (result,) = rig.results()
    assert rig.replay_marks() == [("c-1", valid)]
    assert rig.replay_marks("training.batches") == []
    assert "1 not found" in result.message
    assert "1 with an invalid position" in result.message
    assert "1 from a topic that this service may not write" in result.message


def test_replay_of_nothing_is_refused(rig: ReplayRig) -> None:
    rig.command("0-5")
    rig.run_process()
    (result,) = rig.results()
    assert (result.status, result.message) == ("refused", "nothing was replayed: 1 not found")


def test_letter_too_large_to_keep_is_skipped(rig: ReplayRig) -> None:
    record = Record("feedback.events", 0, 0, 5, b"k", b"v" * 9_000)
    acked = rig.log.append(make_dead_letter("dead.letters", record, Oversized("why"), "processor", 0))[0]
    rig.command(f"{acked.partition}-{acked.offset}")
    rig.run_process()
    assert rig.results()[0].message == "nothing was replayed: 1 too large to have been kept"


def test_old_command_sends_nothing_but_reports_what_it_sent(rig: ReplayRig) -> None:
    first, second = rig.add_dead_letter(key=b"a"), rig.add_dead_letter(key=b"b")
    rig.command(first, second)
    publisher = FailingPublisher(rig.log, "feedback")
    publisher.remaining = 1
    rig.run_process(publisher)
    ((_, sent),) = rig.replay_marks()
    rig.clock.advance(2 * 86_400.0)
    rig.run_process()
    assert rig.replay_marks() == [("c-1", sent)]
    (result,) = rig.results()
    assert result.replayed is not None
    assert result.replayed.positions == (sent,)
    assert "1 not sent because the command is older than a day; issue it again" in result.message


def test_other_and_unreadable_commands_are_ignored(rig: ReplayRig) -> None:
    train = TrainNow(line="assistant", command_id="c-0", issued_at=NOW)
    rig.log.append(
        Output("operator.commands", b"a", train.to_json()), Output("operator.commands", b"a", b"{")
    )
    consumer = rig.run_process()
    assert rig.results() == []
    assert consumer.committed == [0, 1]


def test_many_scattered_letters_are_replayed(rig: ReplayRig) -> None:
    positions = [rig.add_dead_letter(key=b"r-%d" % n) for n in range(1_500)]
    chosen = positions[::7]
    rig.command(*chosen)
    rig.run_process()
    assert sorted(position for _, position in rig.replay_marks()) == sorted(chosen)


# --- the outcome of a dead event ----------------------------------------------------------------------------------


def thumbs() -> bytes:
    event = Thumbs(
        line="assistant", response_id="r-1", event_id="e-1", user_id="u_1", value="up", received_at=NOW
    )
    return event.to_json()


def look_up(rig: ReplayRig) -> Outcome | NoOutcome:
    index = ReceiptIndex(MemoryStore, max_records=1_000)
    index.open()
    index.apply([record for topic in INDEXED_TOPICS for record in rig.log.records(topic)], {})
    return index.find("r-1", "e-1")


def test_dead_event_is_pending_after_replay_until_it_dies_again(rig: ReplayRig) -> None:
    position = rig.add_dead_letter(value=thumbs())
    first = look_up(rig)
    assert isinstance(first, Outcome)
    assert first.outcome == OutcomeKind.DEAD
    rig.command(position)
    rig.run_process()
    assert look_up(rig) is NoOutcome.PENDING
    replayed = next(
        record for record in rig.log.records("feedback.events") if parse_replay_mark(record.headers)
    )
    rig.log.append(make_dead_letter("dead.letters", replayed, Oversized("still"), "processor", 1_000_000))
    second = look_up(rig)
    assert isinstance(second, Outcome)
    assert (second.outcome, second.detail) == (OutcomeKind.DEAD, "still")
    batched = Outcome(
        line="assistant", response_id="r-1", event_id="e-1", outcome=OutcomeKind.BATCHED, decided_at=NOW
    )
    rig.log.append(Output("feedback.outcomes", b"r-1", batched.to_json()))
    assert look_up(rig) == batched
