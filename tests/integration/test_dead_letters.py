"""Dead letters from end to end: console, feedback and processor as processes on a Kafka of their own.

What is counted here is what whole topics hold, so nobody else may write to them.
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
from shared.adapters.topic_admin import create_topics
from shared.cloudevents import cloudevent
from shared.commands import CommandResult
from shared.dead_letter_replay import parse_replay_mark
from shared.dead_letters import DeadLetterLimit
from shared.errors import Rejected
from shared.events import ChatResponse, Choice, Message, Thumbs
from shared.records import Output, Record
from shared.stream.engine import Engine
from shared.stream.step import State, Tick
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS, OPERATOR_COMMANDS
from tests.brokers import own_kafka
from tests.integration.service_process import Service, running
from tests.integration.stream_rig import running as engine_running
from tests.integration.stream_rig import until

P = 3
NOW = datetime.now(UTC)
GOOD, BAD = 300, 150
"""So many bad ones that they would halt the engine if replayed records counted towards its limit."""


@dataclass
class Stack:
    kafka: str
    env: dict[str, str]
    folder: Path
    loop: Loopwright

    def write(self, service: str, *records: Output) -> None:
        publisher = KafkaPublisher(self.kafka, service)
        futures = [publisher.publish(record) for record in records]
        for future in futures:
            future.result(20)
        publisher.close()

    def read(self, topic: str) -> list[Record]:
        reader = KafkaLogReader(self.kafka, "test", [topic])
        found: list[Record] = []
        while not reader.at_end():
            found += reader.poll(0.2)
        reader.close()
        return found

    def replays_of(self, command_id: str) -> Counter[str]:
        """Place of the dead letter -> how often the command sent it back."""
        marks = (parse_replay_mark(record.headers) for record in self.read(FEEDBACK_EVENTS.name))
        return Counter(mark[1] for mark in marks if mark is not None and mark[0] == command_id)

    def settled(self, **ledger: int) -> Callable[[], bool]:
        """Whether nothing is pending and the ledger says so."""

        def holds() -> bool:
            status = self.loop.status()
            assert status.accepted is not None
            found = {name: status.ledger.get(name, 0) for name in ledger}
            return status.pending == 0 and sum(status.ledger.values()) == status.accepted and found == ledger

        return holds


def thumb(response_id: str) -> Output:
    event = Thumbs(
        line="assistant",
        response_id=response_id,
        event_id=f"e-{response_id}",
        user_id="u_1",
        value="up",
        received_at=NOW,
    )
    return cloudevent(FEEDBACK_EVENTS, response_id, event, source="feedback", ce_id=response_id, at=NOW)


def answer(response_id: str) -> Output:
    response = ChatResponse(
        line="assistant",
        response_id=response_id,
        version="own-model-1",
        messages=(Message(role="user", content="Who?"),),
        choices=(Choice(index=0, text="I do not know."),),
        created_at=NOW,
    )
    return cloudevent(CHAT_RESPONSES, response_id, response, source="feedback", ce_id=response_id, at=NOW)


def poisoned(state: State, record: Record | Tick) -> Iterator[Output]:
    """The processor's step as a bad release may have it: it fails over feedback that is in order."""
    if isinstance(record, Record) and record.topic == FEEDBACK_EVENTS.name:
        raise Rejected("this release cannot read thumbs")
    return ProcessorStep()(state, record)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("dead-letters")
    with ExitStack() as open_until_the_end:
        kafka = open_until_the_end.enter_context(own_kafka(folder))
        create_topics(kafka, P)
        env = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka,
            "REDIS_URL": f"{redis_url.rsplit('/', 1)[0]}/11",
            "LOOPWRIGHT_PARTITIONS": str(P),
            "LOOPWRIGHT_DATA_DIR": str(folder / "data"),
            "LOOPWRIGHT_PSEUDONYM_KEY": "0123456789abcdef0123456789abcdef",
            "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": "1",
        }
        console = open_until_the_end.enter_context(running("console", folder, env))
        loop = Loopwright(console_url=str(console.http.base_url), retry=Retry(attempts=20))
        open_until_the_end.callback(loop.close)
        yield Stack(kafka, env, folder, loop)


@pytest.fixture(scope="module")
def poison_was_met(stack: Stack) -> None:
    """Responses as they should be, and feedback on them that a bad release of the processor could not read."""
    names = [f"r-{n}" for n in range(GOOD)]
    stack.write("feedback", *map(answer, names), *map(thumb, names))
    stack.write("feedback", *[Output(FEEDBACK_EVENTS.name, b"bad-%d" % n, b"\xff") for n in range(BAD)])
    settings = ProcessorSettings(kafka_bootstrap_servers=stack.kafka, partitions=P)
    config = replace(engine_config(settings), dead_letter_limit=DeadLetterLimit(max_count=10 * GOOD))
    engine = Engine(config, poisoned)
    with engine_running(engine):
        until(lambda: sum(p.dead_letters for p in engine.partitions()) == GOOD + BAD, "all to die", 60)


@pytest.fixture
def processor(stack: Stack, poison_was_met: None) -> Iterator[Service]:
    with running("processor", stack.folder, stack.env) as service:
        yield service


def test_what_died_is_listed_and_shown(stack: Stack, poison_was_met: None) -> None:
    until(stack.settled(dead=GOOD + BAD), "the console to count them")
    page = stack.loop.dead_letters(topic="feedback.events", limit=200)
    assert {letter.service for letter in page.dead_letters} == {"processor"}
    whole = next(letter for letter in page.dead_letters if letter.bytes > 10)
    shown = stack.loop.dead_letter(whole.position)
    assert (shown.error_class, shown.message) == ("rejected", "this release cannot read thumbs")
    assert shown.value is not None
    assert dict(shown.headers).keys() >= {"ce_id", "ce_type"}
    assert stack.loop.dead_letters(error_class="oversized").dead_letters == ()
    assert stack.loop.dead_letters(since=datetime(2100, 1, 1, tzinfo=UTC)).dead_letters == ()


def test_replayed_once_though_delivered_twice_and_killed_in_the_middle(
    stack: Stack, processor: Service
) -> None:
    """What is good now gets its outcome, the others die again and name the letters before; the count closes."""
    letters = everything(stack.loop)
    assert len(letters) == GOOD + BAD
    bad = {position for position, size in letters.items() if size < 10}
    assert len(bad) == BAD
    with running("feedback", stack.folder, stack.env) as feedback:
        command = stack.loop.replay(list(letters))
        (given,) = stack.read(OPERATOR_COMMANDS.name)
        until(lambda: bool(stack.replays_of(command.command_id)), "the first to go back", 30)
        os.kill(feedback.child.pid, signal.SIGKILL)
        feedback.child.wait(10)
    assert len(stack.replays_of(command.command_id)) < GOOD + BAD, "it was over before it was killed"
    # The same command once more, as a broker or a console that was not sure may deliver it.
    stack.write("console", Output(given.topic, given.key, given.value, given.headers))
    with running("feedback", stack.folder, stack.env):
        result = stack.loop.wait_for_result(command.command_id, timeout=60)
        assert (result.status, result.replayed) == ("done", GOOD + BAD)
        once_more = stack.loop.replay(sorted(bad)[:3])
        assert stack.loop.wait_for_result(once_more.command_id, timeout=60).status == "refused"
    assert stack.replays_of(command.command_id) == Counter(dict.fromkeys(letters, 1))
    until(stack.settled(batched=GOOD, dead=BAD), "all to have their outcome", 60)
    again = stack.loop.dead_letters(replayed=False, limit=200).dead_letters
    assert {letter.replayed_from for letter in again} == bad
    assert {(letter.replay_count, letter.error_class) for letter in again} == {(1, "malformed")}
    assert stack.loop.dead_letter(min(bad)).replayed_by == command.command_id
    answers = [CommandResult.from_json(record.value) for record in stack.read("operator.results")]
    assert [each.command_id for each in answers].count(command.command_id) == 1


def everything(loop: Loopwright) -> dict[str, int]:
    """Position of each dead letter -> how many bytes the record had."""
    found: dict[str, int] = {}
    cursor: str | None = None
    while True:
        page = loop.dead_letters(limit=200, cursor=cursor)
        found |= {letter.position: letter.bytes for letter in page.dead_letters}
        cursor = page.next
        if cursor is None:
            return found
