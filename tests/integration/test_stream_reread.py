"""A step sees its own output again: all of it, beside the inputs, and across a change of owner.

The step under test counts like the others, and on a record `again` it asks to see its output. Of each output that it is
shown it writes to `<name>.seen`, and at the end how many they were.
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
from tests.integration.stream_rig import Rig, complaints, counting, drained, processed, running, until

SEEN = b"!seen"


class Killed(BaseException):
    """Ends an engine's thread in the midst of things."""


@pytest.fixture
def rig(kafka: str, fresh: str) -> Rig:
    rig = Rig(kafka, fresh, partitions=1).create()
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(seen(rig), 1, 1)])[seen(rig)].result()
    return rig


def seen(rig: Rig) -> str:
    return f"{rig.name}.seen"


def config(rig: Rig, **settings: object) -> EngineConfig:
    return rig.config(outputs=frozenset({rig.out, seen(rig)}), **settings)


class Rereading:
    """The step. `refuses`: the event whose output is a dead letter when it is shown again."""

    def __init__(self, rig: Rig, refuses: str = "") -> None:
        self.rig = rig
        self.refuses = refuses
        self.failing_ends = 0
        """So often it raises on being told that it has seen all."""
        self.shown = 0
        self.counted_meanwhile = 0
        self._count = counting(rig.out)

    def __call__(self, state: State, record: Record | Tick | RereadComplete) -> Iterator[Output | RereadRequest]:
        if isinstance(record, RereadComplete):
            yield from self._through(state, record)
        elif isinstance(record, Record) and record.topic == self.rig.out:
            yield from self._again(state, record)
        elif isinstance(record, Record) and (record.value or b"").startswith(b"again"):
            state.put(SEEN, b"0")
            yield RereadRequest(self.rig.a if record.value == b"again: an input" else self.rig.out)
        else:
            self.counted_meanwhile += state.get(SEEN) is not None
            yield from self._count(state, record)

    def _again(self, state: State, record: Record) -> Iterator[Output]:
        self.shown += 1
        event, number = json.loads(record.value or b"")
        if event == self.refuses:
            raise Rejected("not to be seen again")
        state.put(SEEN, b"%d" % (int(state.get(SEEN) or 0) + 1))
        said = json.dumps([event, number, record.timestamp])
        yield Output.to_same_partition_as(record, seen(self.rig), record.key, said.encode())

    def _through(self, state: State, through: RereadComplete) -> Iterator[Output]:
        if self.failing_ends:
            self.failing_ends -= 1
            raise ValueError("not yet")
        yield Output.to_same_partition_as(through, seen(self.rig), b"through", state.get(SEEN))
        state.delete(SEEN)


def publish(rig: Rig, topic: str, count: int, prefix: str) -> dict[str, str]:
    sent = {f"{prefix}{n}": f"k{n % 7}" for n in range(count)}
    rig.send(topic, [(key, event) for event, key in sent.items()])
    return sent


def through(rig: Rig) -> list[int]:
    """How many outputs each finished reread has seen."""
    return [int(message.value()) for message in rig.read(seen(rig)) if message.key() == b"through"]


def seen_events(rig: Rig) -> Counter[str]:
    return Counter(
        json.loads(message.value())[0] for message in rig.read(seen(rig)) if message.key() != b"through"
    )


def test_a_step_sees_all_of_its_output_again_and_then_that_this_was_all(rig: Rig) -> None:
    sent = publish(rig, rig.a, 300, "e")
    rig.send(rig.a, [("k", "again")])
    with running(Engine(config(rig), Rereading(rig))):
        until(lambda: bool(through(rig)), "the end")
    assert through(rig) == [300]
    assert seen_events(rig) == Counter(list(sent))
    assert complaints(rig, sent) == []
    shown = [json.loads(m.value()) for m in rig.read(seen(rig)) if m.key() != b"through"]
    order = [json.loads(message.value())[:2] for message in rig.read(rig.out)]
    assert [each[:2] for each in shown] == order
    times = [each[2] for each in shown]
    assert times == sorted(times)


def test_inputs_flow_while_a_step_sees_its_output_again(rig: Rig) -> None:
    """They share slices of the same size: neither waits for the end of the other."""
    sent = publish(rig, rig.a, 3_000, "e")
    rig.send(rig.a, [("k", "again")])
    later = publish(rig, rig.a, 3_000, "later")
    step = Rereading(rig)
    engine = Engine(config(rig, slice_records=200, commit_interval=0.01), step)
    with running(engine):
        until(lambda: bool(through(rig)), "the end")
        until(processed(engine, 6_001), "the inputs")
    assert step.counted_meanwhile > 1_000
    assert set(sent) <= set(seen_events(rig))
    assert set(seen_events(rig).values()) == {1}
    assert complaints(rig, sent | later) == []


def test_killed_in_the_midst_of_it_a_successor_goes_on_where_that_was_committed(rig: Rig) -> None:
    """One after another, killed before and after a commit: what was shown has its effects exactly once."""
    sent = publish(rig, rig.a, 600, "e")
    rig.send(rig.a, [("k", "again")])
    for instance, phase in (("one", "after_produce"), ("one", "after_commit"), ("two", "after_produce")):
        step = Rereading(rig)

        def probe(now: str, step: Rereading = step, phase: str = phase) -> None:
            if now == phase and step.shown > 100:
                raise Killed

        engine = Engine(config(rig, instance=instance), step, probe=probe)
        with pytest.raises(Killed), running(engine) as thread:
            thread.join(20)
        sent |= publish(rig, rig.b, 50, f"after {instance} {phase}")
    last = Rereading(rig)
    engine = Engine(config(rig, instance="three"), last)
    with running(engine):
        until(lambda: bool(through(rig)), "the end")
        until(drained(engine, rig), "the inputs")
    assert 0 < last.shown < 600
    assert len(through(rig)) == 1
    assert set(seen_events(rig).values()) == {1}
    assert {event for event in sent if event.startswith("e")} <= set(seen_events(rig))
    assert complaints(rig, sent) == []


def test_asking_twice_or_for_what_is_no_output_is_a_dead_letter(rig: Rig) -> None:
    sent = publish(rig, rig.a, 200, "e")
    rig.send(rig.a, [("k", "again"), ("k", "again and again"), ("k", "again: an input")])
    with running(Engine(config(rig), Rereading(rig))):
        until(lambda: bool(through(rig)), "the end of the first")
        rig.send(rig.a, [("k", "again, after the first")])
        until(lambda: len(through(rig)) == 2, "the end of the second")
    assert through(rig) == [200, 200]
    said = {message.value(): dict(message.headers())["dl_message"] for message in rig.read(rig.dead)}
    assert said == {
        b"again and again": f"A reread of {rig.out} is under way already.".encode(),
        b"again: an input": f"The step may not write the topic {rig.a!r}.".encode(),
    }
    assert complaints(rig, sent) == []


def test_an_output_on_which_the_step_raises_when_it_sees_it_again_is_a_dead_letter(rig: Rig) -> None:
    publish(rig, rig.a, 30, "e")
    rig.send(rig.a, [("k", "again")])
    engine = Engine(config(rig, slice_records=8), Rereading(rig, refuses="e7"))
    with running(engine):
        until(lambda: bool(through(rig)), "the end")
    assert through(rig) == [29]
    (dead,) = rig.read(rig.dead)
    headers = dict(dead.headers())
    assert (headers["dl_topic"], headers["dl_partition"]) == (rig.out.encode(), b"0")
    (original,) = [m for m in rig.read(rig.out) if m.offset() == int(headers["dl_offset"])]
    assert json.loads(original.value())[0] == "e7"
    assert dead.value() == original.value()


def test_an_end_on_which_the_step_raises_is_told_again(rig: Rig) -> None:
    publish(rig, rig.a, 3, "e")
    rig.send(rig.a, [("k", "again")])
    step = Rereading(rig)
    step.failing_ends = 2
    with running(Engine(config(rig, tick_interval=0.1), step)):
        until(lambda: bool(through(rig)), "the end")
    assert through(rig) == [3]


def test_an_end_on_which_the_step_always_raises_halts_the_engine(rig: Rig) -> None:
    rig.send(rig.a, [("k", "again")])
    step = Rereading(rig)
    step.failing_ends = 1_000
    engine = Engine(config(rig, tick_interval=0.05, max_failed_ticks=3), step)
    with running(engine):
        until(lambda: engine.state == "halted", "halting")
        assert "reread" in engine.reason


def test_a_step_that_rewrites_what_it_sees_comes_to_an_end(rig: Rig) -> None:
    """What it writes to the very topic lies behind the end, which was set when the reread began."""
    count = counting(rig.out)

    def step(state: State, record: Record | Tick | RereadComplete) -> Iterator[Output | RereadRequest]:
        if isinstance(record, RereadComplete):
            yield Output.to_same_partition_as(record, seen(rig), b"through", b"1")
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
        until(lambda: bool(through(rig)), "the end")
        until(drained(engine, rig), "the inputs")
    assert len(rig.read(rig.out)) == 800


def test_a_reread_record_whose_output_only_the_broker_refuses_is_isolated_and_the_rest_goes_on(
    rig: Rig,
) -> None:
    """Slices are halved down to that record, though inputs and what is reread share them."""
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
        until(lambda: bool(through(rig)), "the end", 40)
        until(drained(engine, rig), "the inputs")
    (dead,) = rig.read(rig.dead)
    assert dict(dead.headers())["dl_topic"] == rig.out.encode()
    assert json.loads(dead.value())[0] == "e7"
    assert set(seen_events(rig)) >= {f"e{n}" for n in range(12) if n != 7}
    assert complaints(rig, sent) == []
