"""The fault tests' oracle, without faults: it is content with what the core makes, and names what was tampered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from services.processor.core.batches import BatchLimits
from services.processor.core.step import ProcessorStep
from shared.dead_letters import make_dead_letter
from shared.errors import LoopwrightError
from shared.records import Output, Record
from shared.stream.state_store import MemoryStore
from shared.stream.step import Tick
from shared.stream.write_buffer import WriteBuffer
from shared.topics import FEEDBACK_EVENTS, FEEDBACK_OUTCOMES, FEEDBACK_TALLIES, TRAINING_BATCHES
from tests.fault.oracle import Seen, complaints, names
from tests.fault.workload import INTENT, Intent, Sent, history

NOW = 1_800_000_000_000


def processed(intents: list[Intent], *, ticks: bool = True) -> Seen:
    """As an engine would with one partition, every record appended a second after the one before."""
    step, store = ProcessorStep(BatchLimits(examples=4, age_ms=5_000)), MemoryStore()
    seen = Seen({}, [], [])
    for intent in intents:
        log = seen.records.setdefault(intent.topic, [])
        at = NOW + intent.number * 1_000
        headers = ((INTENT, str(intent.number).encode()),)
        record = Record(intent.topic, 0, len(log), at, intent.key, intent.value, headers)
        log.append(record)
        for turn in (record, Tick(0, at)) if ticks and intent.number % 20 == 0 else (record,):
            _turn(step, store, turn, seen)
    return seen


def _turn(step: ProcessorStep, store: MemoryStore, turn: Record | Tick, seen: Seen) -> None:
    overlay = WriteBuffer(store, 1_000_000)
    overlay.savepoint()
    try:
        outputs = list(step(overlay, turn))
    except LoopwrightError as error:
        assert isinstance(turn, Record)
        letter = make_dead_letter("dead.letters", turn, error, "processor", 1_000_000)
        seen.dead.append(
            Record("dead.letters", 0, len(seen.dead), 0, letter.key, letter.value, letter.headers)
        )
        return
    store.apply(overlay.writes, 0)
    changes = [Record("changelog", 0, 0, 0, key, value) for key, value in overlay.writes.items()]
    seen.changelog.extend(changes)
    for output in outputs:
        if not isinstance(output, Output):  # a wish to read again: nothing is erased here
            continue
        log = seen.records.setdefault(output.topic, [])
        log.append(Record(output.topic, 0, len(log), 0, output.key, output.value, output.headers))


@pytest.mark.parametrize("seed", range(5))
def test_a_run_without_faults_is_not_complained_of(seed: int) -> None:
    intents = history(seed)
    seen = processed(intents)
    places = {
        dict(r.headers)[INTENT]: r for log in seen.records.values() for r in log if r.headers[0][0] == INTENT
    }
    sent = [Sent(intent, 0, places[str(intent.number).encode()].offset) for intent in intents]
    assert complaints(seen, sent) == []


def test_the_workload_brings_every_kind_of_end() -> None:
    """Else the oracle would be content with less than it is made for."""
    seen = processed([i for seed in range(3) for i in history(seed, 80)], ticks=False)
    said = b"".join(record.value or b"" for record in seen.of(FEEDBACK_OUTCOMES.name)).decode()
    kinds = ("batched", "superseded", "duplicate", "retracted", "applied_retract", "tally_only")
    assert [kind for kind in kinds if f'"outcome":"{kind}"' not in said] == []
    classes = {dict(letter.headers)["dl_class"] for letter in seen.dead}
    assert classes >= {b"malformed", b"conflict", b"rejected"}


def test_an_acknowledged_record_that_is_not_there_is_missed() -> None:
    intents = history(1)
    seen = processed(intents)
    assert names(complaints(seen, [Sent(intents[0], 0, 10_000)])) == {"I1 unlogged"}


Tampering = Callable[[Seen], object]


def _drop_last(topic: str) -> Tampering:
    return lambda seen: seen.records[topic].pop()


def _repeat_last(topic: str) -> Tampering:
    return lambda seen: seen.records[topic].append(seen.records[topic][-1])


def _event_that_nobody_processed(seen: Seen) -> None:
    log = seen.records[FEEDBACK_EVENTS.name]
    last = next(r for r in reversed(log) if r.value and b'"thumbs"' in r.value)
    log.append(replace(last, offset=len(log), timestamp=last.timestamp + 1))


def _state_in_another_partition_too(seen: Seen) -> None:
    seen.changelog.extend([replace(record, partition=1) for record in seen.changelog])


@pytest.mark.parametrize(
    ("tamper", "name"),
    [
        (_drop_last(FEEDBACK_OUTCOMES.name), "I1 lost"),
        (_repeat_last(FEEDBACK_OUTCOMES.name), "I1 twice"),
        (_event_that_nobody_processed, "I1 lost"),
        (_state_in_another_partition_too, "I1 twice"),
        (lambda seen: seen.changelog.clear(), "I1 lost"),
        (lambda seen: seen.dead.pop(), "I1 dead letters"),
        (lambda seen: seen.dead.append(seen.dead[0]), "I1 dead letters"),
        (_repeat_last(TRAINING_BATCHES.name), "I2 batch twice"),
        (_drop_last(TRAINING_BATCHES.name), "I1 batched"),
        (_drop_last(TRAINING_BATCHES.name), "I3"),
        (lambda seen: seen.records[FEEDBACK_TALLIES.name].clear(), "I4 tallies"),
    ],
)
def test_what_was_tampered_with_is_named(tamper: Tampering, name: str) -> None:
    seen = processed(history(2))
    tamper(seen)
    assert name in names(complaints(seen))
