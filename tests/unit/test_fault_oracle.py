"""The oracle of the fault tests: it accepts what the core makes, and names every kind of tampering."""

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
from tests.fault.oracle import LogContents, violation_names, violations
from tests.fault.workload import INTENT_HEADER, Intent, Sent, history

NOW = 1_800_000_000_000


def process(intents: list[Intent], *, ticks: bool = True) -> LogContents:
    """Return the log after one partition processed these records, appended a second apart."""
    step, store = ProcessorStep(BatchLimits(examples=4, age_ms=5_000)), MemoryStore()
    contents = LogContents({}, [], [])
    for intent in intents:
        log = contents.records.setdefault(intent.topic, [])
        at = NOW + intent.number * 1_000
        headers = ((INTENT_HEADER, str(intent.number).encode()),)
        record = Record(intent.topic, 0, len(log), at, intent.key, intent.value, headers)
        log.append(record)
        for item in (record, Tick(0, at, at)) if ticks and intent.number % 20 == 0 else (record,):
            _process_one(step, store, item, contents)
    return contents


def _process_one(step: ProcessorStep, store: MemoryStore, item: Record | Tick, contents: LogContents) -> None:
    buffer = WriteBuffer(store, 1_000_000)
    buffer.savepoint()
    try:
        outputs = list(step(buffer, item))
    except LoopwrightError as error:
        assert isinstance(item, Record)
        letter = make_dead_letter("dead.letters", item, error, "processor", 1_000_000)
        contents.dead.append(
            Record("dead.letters", 0, len(contents.dead), 0, letter.key, letter.value, letter.headers)
        )
        return
    store.apply(buffer.writes, 0)
    changes = [Record("changelog", 0, 0, 0, key, value) for key, value in buffer.writes.items()]
    contents.changelog.extend(changes)
    for output in outputs:
        if not isinstance(output, Output):  # not a `RereadRequest`: nothing is erased here
            continue
        log = contents.records.setdefault(output.topic, [])
        log.append(Record(output.topic, 0, len(log), 0, output.key, output.value, output.headers))


@pytest.mark.parametrize("seed", range(5))
def test_run_without_faults_has_no_violations(seed: int) -> None:
    intents = history(seed)
    contents = process(intents)
    places = {
        dict(r.headers)[INTENT_HEADER]: r
        for log in contents.records.values()
        for r in log
        if r.headers[0][0] == INTENT_HEADER
    }
    sent = [Sent(intent, 0, places[str(intent.number).encode()].offset) for intent in intents]
    assert violations(contents, sent) == []


def test_workload_leads_to_every_kind_of_outcome() -> None:
    """Otherwise the fault tests would check less than they claim."""
    contents = process([i for seed in range(3) for i in history(seed, 80)], ticks=False)
    outcomes = b"".join(record.value or b"" for record in contents.topic(FEEDBACK_OUTCOMES.name)).decode()
    kinds = ("batched", "superseded", "duplicate", "retracted", "applied_retract", "tally_only", "refused")
    assert [kind for kind in kinds if f'"outcome":"{kind}"' not in outcomes] == []
    reasons = ("conflict", "not_yours")
    assert [reason for reason in reasons if f'"reason":"{reason}"' not in outcomes] == []
    assert {dict(letter.headers)["dl_class"] for letter in contents.dead} == {b"malformed"}


def test_oracle_misses_an_acknowledged_record() -> None:
    intents = history(1)
    contents = process(intents)
    assert violation_names(violations(contents, [Sent(intents[0], 0, 10_000)])) == {"I1 unlogged"}


Tampering = Callable[[LogContents], object]


def _drop_last(topic: str) -> Tampering:
    return lambda contents: contents.records[topic].pop()


def _repeat_last(topic: str) -> Tampering:
    return lambda contents: contents.records[topic].append(contents.records[topic][-1])


def _append_unprocessed_event(contents: LogContents) -> None:
    log = contents.records[FEEDBACK_EVENTS.name]
    last = next(r for r in reversed(log) if r.value and b'"thumbs"' in r.value)
    log.append(replace(last, offset=len(log), timestamp=last.timestamp + 1))


def _copy_state_to_another_partition(contents: LogContents) -> None:
    contents.changelog.extend([replace(record, partition=1) for record in contents.changelog])


@pytest.mark.parametrize(
    ("tamper", "name"),
    [
        (_drop_last(FEEDBACK_OUTCOMES.name), "I1 lost"),
        (_repeat_last(FEEDBACK_OUTCOMES.name), "I1 twice"),
        (_append_unprocessed_event, "I1 lost"),
        (_copy_state_to_another_partition, "I1 twice"),
        (lambda contents: contents.changelog.clear(), "I1 lost"),
        (lambda contents: contents.dead.pop(), "I1 dead letters"),
        (lambda contents: contents.dead.append(contents.dead[0]), "I1 dead letters"),
        (_repeat_last(TRAINING_BATCHES.name), "I2 batch twice"),
        (_drop_last(TRAINING_BATCHES.name), "I1 batched"),
        (_drop_last(TRAINING_BATCHES.name), "I3"),
        (lambda contents: contents.records[FEEDBACK_TALLIES.name].clear(), "I4 tallies"),
    ],
)
def test_oracle_names_every_kind_of_tampering(tamper: Tampering, name: str) -> None:
    contents = process(history(2))
    tamper(contents)
    assert name in violation_names(violations(contents))
