"""Tests of rereads: a step receives all its outputs again, along with the inputs and across a change of owner.

The step under test counts records, and requests a reread on a record `again`. For each reread output it writes one to
`<name>.seen`, and at the end the number of them.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from shared.errors import Rejected
from shared.records import Output, Record
from shared.stream.config import EngineConfig
from shared.stream.engine import Engine
from shared.stream.step import RereadComplete, RereadRequest, State, Tick
from tests.integration.stream_rig import Rig, counting_step, drained, processed, running, until, violations

SEEN = b"!seen"


class Killed(BaseException):
    """Ends an engine's thread abruptly."""


@pytest.fixture
def rig(kafka: str, fresh: str) -> Rig:
    rig = Rig(kafka, fresh, partitions=1).create()
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(seen(rig), 1, 1)])[seen(rig)].result()
    return rig


def seen(rig: Rig) -> str:
    """Return the topic to which the step writes what it rereads."""
    return f"{rig.name}.seen"


def config(rig: Rig, **settings: object) -> EngineConfig:
    return rig.config(outputs=frozenset({rig.out, seen(rig)}), **settings)


class Rereading:
    """The step under test. It rejects the event `refuses` when it is reread."""

    def __init__(self, rig: Rig, refuses: str = "") -> None:
        self.rig = rig
        self.refuses = refuses
        self.failing_completions = 0
        """How many completions it raises on."""
        self.reread = 0
        self.counted_during_reread = 0
        self._count = counting_step(rig.out)

    def __call__(
        self, state: State, record: Record | Tick | RereadComplete
    ) -> Iterator[Output | RereadRequest]:
        if isinstance(record, RereadComplete):
            yield from self._complete(state, record)
        elif isinstance(record, Record) and record.topic == self.rig.out:
            yield from self._again(state, record)
        elif isinstance(record, Record) and (record.value or b"").startswith(b"again"):
            state.put(SEEN, b"0")
            yield RereadRequest(self.rig.a if record.value == b"again: an input" else self.rig.out)
        else:
            self.counted_during_reread += state.get(SEEN) is not None
            yield from self._count(state, record)

    def _again(self, state: State, record: Record) -> Iterator[Output]:
        self.reread += 1
        event, number = json.loads(record.value or b"")
        if event == self.refuses:
            raise Rejected("refused on purpose")
        state.put(SEEN, b"%d" % (int(state.get(SEEN) or 0) + 1))
        value = json.dumps([event, number, record.timestamp])
        yield Output.to_same_partition_as(record, seen(self.rig), record.key, value.encode())

    def _complete(self, state: State, completion: RereadComplete) -> Iterator[Output]:
        if self.failing_completions:
            self.failing_completions -= 1
            raise ValueError("not yet")
        yield Output.to_same_partition_as(completion, seen(self.rig), b"complete", state.get(SEEN))
        state.delete(SEEN)


def publish(rig: Rig, topic: str, count: int, prefix: str) -> dict[str, str]:
    sent = {f"{prefix}{n}": f"k{n % 7}" for n in range(count)}
    rig.send(topic, [(key, event) for event, key in sent.items()])
    return sent


def completed(rig: Rig) -> list[int]:
    """Return the number of outputs in each completed reread."""
    return [int(message.value()) for message in rig.read(seen(rig)) if message.key() == b"complete"]


def seen_events(rig: Rig) -> Counter[str]:
    """Return how often each event was reread."""
    return Counter(
        json.loads(message.value())[0] for message in rig.read(seen(rig)) if message.key() != b"complete"
    )


def test_step_rereads_all_its_outputs_and_gets_the_completion(rig: Rig) -> None:
    sent = publish(rig, rig.a, 300, "e")
    rig.send(rig.a, [("k", "again")])
    with running(Engine(config(rig), Rereading(rig))):
        until(lambda: bool(completed(rig)), "the end")
    assert completed(rig) == [300]
    assert seen_events(rig) == Counter(list(sent))
    assert violations(rig, sent) == []
    reread = [json.loads(m.value()) for m in rig.read(seen(rig)) if m.key() != b"complete"]
    order = [json.loads(message.value())[:2] for message in rig.read(rig.out)]
    assert [each[:2] for each in reread] == order
    times = [each[2] for each in reread]
    assert times == sorted(times)


def test_inputs_are_processed_during_a_reread(rig: Rig) -> None:
    """Inputs and rereads share slices, so neither waits until the other is finished."""
    sent = publish(rig, rig.a, 3_000, "e")
    rig.send(rig.a, [("k", "again")])
    later = publish(rig, rig.a, 3_000, "later")
    step = Rereading(rig)
    engine = Engine(config(rig, slice_records=200, commit_interval=0.01), step)
    with running(engine):
        until(lambda: bool(completed(rig)), "the end")
        until(processed(engine, 6_001), "the inputs")
    assert step.counted_during_reread > 1_000
    assert set(sent) <= set(seen_events(rig))
    assert set(seen_events(rig).values()) == {1}
    assert violations(rig, sent | later) == []


def test_successor_continues_a_reread_at_the_committed_position(rig: Rig) -> None:
    """Engines are killed before and after a commit; each reread output still has its effect exactly once."""
    sent = publish(rig, rig.a, 600, "e")
    rig.send(rig.a, [("k", "again")])
    for instance, phase in (("one", "after_produce"), ("one", "after_commit"), ("two", "after_produce")):
        step = Rereading(rig)

        def probe(now: str, step: Rereading = step, phase: str = phase) -> None:
            if now == phase and step.reread > 100:
                raise Killed

        engine = Engine(config(rig, instance=instance), step, probe=probe)
        with pytest.raises(Killed), running(engine) as thread:
            thread.join(20)
        sent |= publish(rig, rig.b, 50, f"after {instance} {phase}")
    last = Rereading(rig)
    engine = Engine(config(rig, instance="three"), last)
    with running(engine):
        until(lambda: bool(completed(rig)), "the end")
        until(drained(engine, rig), "the inputs")
    assert 0 < last.reread < 600
    assert len(completed(rig)) == 1
    assert set(seen_events(rig).values()) == {1}
    assert {event for event in sent if event.startswith("e")} <= set(seen_events(rig))
    assert violations(rig, sent) == []


def test_invalid_reread_request_is_a_dead_letter(rig: Rig) -> None:
    sent = publish(rig, rig.a, 200, "e")
    rig.send(rig.a, [("k", "again"), ("k", "again and again"), ("k", "again: an input")])
    with running(Engine(config(rig), Rereading(rig))):
        until(lambda: bool(completed(rig)), "the end of the first")
        rig.send(rig.a, [("k", "again, after the first")])
        until(lambda: len(completed(rig)) == 2, "the end of the second")
    assert completed(rig) == [200, 200]
    messages = {message.value(): dict(message.headers())["dl_message"] for message in rig.read(rig.dead)}
    assert messages == {
        b"again and again": f"a reread of {rig.out} is already in progress".encode(),
        b"again: an input": f"the step may not write the topic {rig.a!r}".encode(),
    }
    assert violations(rig, sent) == []


def test_reread_output_that_raises_is_a_dead_letter(rig: Rig) -> None:
    publish(rig, rig.a, 30, "e")
    rig.send(rig.a, [("k", "again")])
    engine = Engine(config(rig, slice_records=8), Rereading(rig, refuses="e7"))
    with running(engine):
        until(lambda: bool(completed(rig)), "the end")
    assert completed(rig) == [29]
    (dead,) = rig.read(rig.dead)
    headers = dict(dead.headers())
    assert (headers["dl_topic"], headers["dl_partition"]) == (rig.out.encode(), b"0")
    (original,) = [m for m in rig.read(rig.out) if m.offset() == int(headers["dl_offset"])]
    assert json.loads(original.value())[0] == "e7"
    assert dead.value() == original.value()


def test_completion_that_raises_is_passed_again(rig: Rig) -> None:
    publish(rig, rig.a, 3, "e")
    rig.send(rig.a, [("k", "again")])
    step = Rereading(rig)
    step.failing_completions = 2
    with running(Engine(config(rig, tick_interval=0.1), step)):
        until(lambda: bool(completed(rig)), "the end")
    assert completed(rig) == [3]


def test_completion_that_always_raises_does_not_stop_the_records(rig: Rig) -> None:
    rig.send(rig.a, [("k", "again")])
    step = Rereading(rig)
    step.failing_completions = 1_000
    engine = Engine(config(rig, tick_interval=0.05), step)
    with running(engine):
        until(lambda: any("reread of" in warning for warning in engine.warnings), "the warning")
        assert engine.ready
        rig.send(rig.a, [("k", "later")])
        until(lambda: sum(p.lag.get(rig.a, 1) for p in engine.partitions()) == 0, "the later record")
    assert completed(rig) == []


def test_reread_ends_although_the_step_writes_the_same_topic(rig: Rig) -> None:
    """The end was fixed when the reread began, and the new outputs come after it."""
    count = counting_step(rig.out)

    def step(state: State, record: Record | Tick | RereadComplete) -> Iterator[Output | RereadRequest]:
        if isinstance(record, RereadComplete):
            yield Output.to_same_partition_as(record, seen(rig), b"complete", b"1")
        elif isinstance(record, Tick):
            return
        elif record.topic == rig.out:
            yield Output.to_same_partition_as(record, rig.out, record.key, (record.value or b"") + b" ")
        elif record.value == b"again":
            yield RereadRequest(rig.out)
        else:
            yield from count(state, record)

    publish(rig, rig.a, 400, "e")
    rig.send(rig.b, [("k", "again")])
    engine = Engine(config(rig), step)
    with running(engine):
        until(lambda: bool(completed(rig)), "the end")
        until(drained(engine, rig), "the inputs")
    assert len(rig.read(rig.out)) == 800


def test_reread_record_with_a_refused_output_is_isolated(
    rig: Rig,
) -> None:
    """Slices are halved down to that record, although inputs and rereads share them."""
    small = NewTopic(f"{rig.name}.small", 1, 1, config={"max.message.bytes": "2000"})
    admin = AdminClient({"bootstrap.servers": rig.kafka})
    admin.create_topics([small])[small.topic].result()
    plain, noise = Rereading(rig), secrets.token_bytes(20_000)

    def step(state: State, record: Record | Tick | RereadComplete) -> Iterator[Output | RereadRequest]:
        yield from plain(state, record)
        if isinstance(record, Record) and record.topic == rig.out and b'"e7"' in (record.value or b""):
            yield Output.to_same_partition_as(record, small.topic, b"k", noise)

    sent = publish(rig, rig.a, 12, "e")
    rig.send(rig.a, [("k", "again")])
    aborts: list[str] = []
    settings = rig.config(outputs=frozenset({rig.out, seen(rig), small.topic}), slice_records=4)
    engine = Engine(settings, step, on_abort=aborts.append)
    with running(engine):
        until(lambda: bool(aborts), "the first abort")
        sent |= publish(rig, rig.b, 40, "later")
        until(lambda: bool(completed(rig)), "the end", 40)
        until(drained(engine, rig), "the inputs")
    (dead,) = rig.read(rig.dead)
    assert dict(dead.headers())["dl_topic"] == rig.out.encode()
    assert json.loads(dead.value())[0] == "e7"
    assert set(seen_events(rig)) >= {f"e{n}" for n in range(12) if n != 7}
    assert violations(rig, sent) == []
