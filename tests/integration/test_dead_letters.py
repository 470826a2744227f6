"""Dead letters end to end: console, feedback and processor processes on a Kafka that only these tests use.

The tests count all records of a topic, so no other test may write to it.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from loopwright import Loopwright, Retry
from services.processor.core.step import ProcessorStep
from services.processor.service import engine_config
from services.processor.settings import ProcessorSettings
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.cloudevents import cloudevent
from shared.commands import CommandResult
from shared.dead_letter_replay import parse_replay_mark
from shared.dead_letters import DeadLetterLimit
from shared.errors import Rejected
from shared.events import ChatResponse, Choice, Message, Thumbs
from shared.kafka_connection import KafkaConnection
from shared.records import Output, Record
from shared.stream.engine import Engine
from shared.stream.step import State, Tick
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS, OPERATOR_COMMANDS
from tests.brokers import own_kafka
from tests.integration.service_process import Service, running
from tests.integration.stream_rig import running as engine_running
from tests.integration.stream_rig import until as wait_until

P = 3
NOW = datetime.now(UTC)
GOOD, BAD = 300, 150
"""Enough bad records to halt the engine if replayed records counted towards its limit."""


@dataclass
class Stack:
    kafka: str
    env: dict[str, str]
    folder: Path
    loop: Loopwright

    def write(self, service: str, *records: Output) -> None:
        publisher = KafkaPublisher(KafkaConnection(self.kafka), service)
        futures = [publisher.publish(record) for record in records]
        for future in futures:
            future.result(20)
        publisher.close()

    def read(self, topic: str) -> list[Record]:
        reader = KafkaLogReader(KafkaConnection(self.kafka), "test", [topic])
        records: list[Record] = []
        while not reader.at_end():
            records += reader.poll(0.2)
        reader.close()
        return records

    def replays_of(self, command_id: str) -> Counter[str]:
        """Return position of each dead letter -> how often the command sent it back."""
        marks = (parse_replay_mark(record.headers) for record in self.read(FEEDBACK_EVENTS.name))
        return Counter(mark[1] for mark in marks if mark is not None and mark[0] == command_id)

    def settled(self, **ledger: int) -> Callable[[], bool]:
        """Return a condition: nothing is pending, and the ledger has these counts."""

        def holds() -> bool:
            status = self.loop.status()
            assert status.accepted is not None
            counts = {name: status.ledger.get(name, 0) for name in ledger}
            return status.pending == 0 and sum(status.ledger.values()) == status.accepted and counts == ledger

        return holds


def thumbs(response_id: str) -> Output:
    event = Thumbs(
        line="assistant",
        response_id=response_id,
        event_id=f"e-{response_id}",
        user_id="u_1",
        value="up",
        received_at=NOW,
    )
    return cloudevent(FEEDBACK_EVENTS, response_id, event, source="feedback", ce_id=response_id, at=NOW)


def response(response_id: str) -> Output:
    record = ChatResponse(
        line="assistant",
        response_id=response_id,
        version="own-model-1",
        messages=(Message(role="user", content="Who?"),),
        choices=(Choice(index=0, text="I do not know."),),
        created_at=NOW,
    )
    return cloudevent(CHAT_RESPONSES, response_id, record, source="feedback", ce_id=response_id, at=NOW)


def faulty_step(state: State, record: Record | Tick) -> Iterator[Output]:
    """The processor's step as in a bad release: it fails on valid feedback."""
    if isinstance(record, Record) and record.topic == FEEDBACK_EVENTS.name:
        raise Rejected("this release cannot read thumbs")
    return ProcessorStep()(state, record)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("dead-letters")
    with ExitStack() as exit_stack:
        kafka = exit_stack.enter_context(own_kafka(folder, partitions=P))
        env = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka,
            "REDIS_URL": f"{redis_url.rsplit('/', 1)[0]}/11",
            "LOOPWRIGHT_PARTITIONS": str(P),
            "LOOPWRIGHT_DATA_DIR": str(folder / "data"),
            "LOOPWRIGHT_PSEUDONYM_KEY": "0123456789abcdef0123456789abcdef",
            "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "1",
        }
        console = exit_stack.enter_context(running("console", folder, env))
        loop = Loopwright(console_url=str(console.http.base_url), retry=Retry(attempts=20))
        exit_stack.callback(loop.close)
        yield Stack(kafka, env, folder, loop)


@pytest.fixture(scope="module")
def dead_letters_written(stack: Stack) -> None:
    """Write responses and feedback, and let a bad release of the processor turn the feedback into dead letters."""
    names = [f"r-{n}" for n in range(GOOD)]
    stack.write("feedback", *map(response, names), *map(thumbs, names))
    stack.write("feedback", *[Output(FEEDBACK_EVENTS.name, b"bad-%d" % n, b"\xff") for n in range(BAD)])
    settings = ProcessorSettings(kafka_bootstrap_servers=stack.kafka, partitions=P)
    config = replace(engine_config(settings), dead_letter_limit=DeadLetterLimit(max_count=10 * GOOD))
    engine = Engine(config, faulty_step)
    with engine_running(engine):
        wait_until(
            lambda: sum(p.dead_letters for p in engine.partitions()) == GOOD + BAD,
            "all feedback to become dead letters",
            60,
        )


@pytest.fixture
def processor(stack: Stack, dead_letters_written: None) -> Iterator[Service]:
    with running("processor", stack.folder, stack.env) as service:
        yield service


def test_dead_letters_are_listed_and_shown(stack: Stack, dead_letters_written: None) -> None:
    wait_until(stack.settled(dead=GOOD + BAD), "the console to count them")
    page = stack.loop.dead_letters(topic="feedback.events", limit=200)
    assert {letter.service for letter in page.dead_letters} == {"processor"}
    large = next(letter for letter in page.dead_letters if letter.bytes > 10)
    details = stack.loop.dead_letter(large.position)
    assert (details.error_class, details.message) == ("rejected", "this release cannot read thumbs")
    assert details.value is not None
    assert dict(details.headers).keys() >= {"ce_id", "ce_type"}
    assert stack.loop.dead_letters(error_class="oversized").dead_letters == ()
    assert stack.loop.dead_letters(since=datetime(2100, 1, 1, tzinfo=UTC)).dead_letters == ()


def test_replay_is_done_once_though_killed_and_delivered_twice(stack: Stack, processor: Service) -> None:
    """Valid events get their outcome; the others become dead letters again, which name the first ones."""
    letters = all_dead_letters(stack.loop)
    assert len(letters) == GOOD + BAD
    bad = {position for position, size in letters.items() if size < 10}
    assert len(bad) == BAD
    with running("feedback", stack.folder, stack.env) as feedback:
        command = stack.loop.replay(list(letters))
        (record,) = stack.read(OPERATOR_COMMANDS.name)
        wait_until(
            lambda: bool(stack.replays_of(command.command_id)), "the first dead letter to be replayed", 30
        )
        os.kill(feedback.child.pid, signal.SIGKILL)
        feedback.child.wait(10)
    assert len(stack.replays_of(command.command_id)) < GOOD + BAD, (
        "the replay was finished before the process was killed"
    )
    # The same command once more, as after a lost acknowledgement.
    stack.write("console", Output(record.topic, record.key, record.value, record.headers))
    with running("feedback", stack.folder, stack.env):
        result = stack.loop.wait_for_result(command.command_id, timeout=60)
        assert (result.status, result.replayed) == ("done", GOOD + BAD)
        once_more = stack.loop.replay(sorted(bad)[:3])
        assert stack.loop.wait_for_result(once_more.command_id, timeout=60).status == "refused"
    assert stack.replays_of(command.command_id) == Counter(dict.fromkeys(letters, 1))
    wait_until(stack.settled(batched=GOOD, dead=BAD), "all events to have their outcome", 60)
    again = stack.loop.dead_letters(replayed=False, limit=200).dead_letters
    assert {letter.replayed_from for letter in again} == bad
    assert {(letter.replay_count, letter.error_class) for letter in again} == {(1, "malformed")}
    assert stack.loop.dead_letter(min(bad)).replayed_by == command.command_id
    results = [CommandResult.from_json(record.value) for record in stack.read("operator.results")]
    assert [result.command_id for result in results].count(command.command_id) == 1


def all_dead_letters(loop: Loopwright) -> dict[str, int]:
    """Return position of each dead letter -> size of the record in bytes."""
    sizes: dict[str, int] = {}
    cursor: str | None = None
    while True:
        page = loop.dead_letters(limit=200, cursor=cursor)
        sizes |= {letter.position: letter.bytes for letter in page.dead_letters}
        cursor = page.next
        if cursor is None:
            return sizes
