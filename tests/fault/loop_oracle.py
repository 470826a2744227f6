"""Reads everything the loop has written and says which of I1-I4 and I6 do not hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from services.processor.core.step import ProcessorStep
from shared.adapters.kafka import KafkaLogReader
from shared.errors import LoopwrightError
from shared.events import FEEDBACK, Batch, ExampleRevision, Outcome, parse_union
from shared.stream.overlay import Overlay
from shared.stream.step import Record, Tick
from shared.stream.store import MemoryStore
from shared.topics import (
    CHAT_RESPONSES,
    DEAD_LETTERS,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    MODEL_VERSIONS,
    TRAINING_BATCHES,
    Topic,
)
from shared.versions import ModelVersion

Newest = dict[str, tuple[str, tuple[tuple[str, str], ...]]]
"""response_id -> (op, its signals)"""


def read_all(kafka: str, topic: Topic) -> list[Record]:
    """Every committed record of a topic."""
    reader = KafkaLogReader(kafka, "oracle", [topic.name])
    records = []
    while not reader.at_end():
        records += reader.poll(0.2)
    reader.close()
    return records


def complaints(kafka: str) -> list[str]:
    """What does not hold, in words; empty if all is well. Call it when nothing is pending any more."""
    batches = [Batch.from_json(record.value) for record in read_all(kafka, TRAINING_BATCHES)]
    return [
        *_each_event_has_one_outcome(kafka),
        *_each_revision_is_in_one_batch(batches),
        *_newest_revisions_equal_a_recomputation(kafka, batches),
        *_each_run_published_one_version(kafka),
    ]


def _each_event_has_one_outcome(kafka: str) -> Iterable[str]:
    """I1: as many outcomes as log records, per event."""
    wanted: Counter[tuple[str, str]] = Counter()
    for record in read_all(kafka, FEEDBACK_EVENTS):
        event = parse_union(FEEDBACK, record.value)
        wanted[event.response_id, event.event_id] += 1
    found: Counter[tuple[str, str]] = Counter()
    for record in read_all(kafka, FEEDBACK_OUTCOMES):
        outcome = Outcome.from_json(record.value)
        found[outcome.response_id, outcome.event_id] += 1
    for record in read_all(kafka, DEAD_LETTERS):
        event = parse_union(FEEDBACK, record.value)
        found[event.response_id, event.event_id] += 1
    for identity in wanted.keys() | found.keys():
        if wanted[identity] != found[identity]:
            yield f"I1: {identity} stands {wanted[identity]} times in the log and has {found[identity]} outcomes"


def _each_revision_is_in_one_batch(batches: list[Batch]) -> Iterable[str]:
    """I2: and a batch id has one content, its hash, and numbers without gaps."""
    seen: dict[tuple[str, int], str] = {}
    numbers: dict[int, list[int]] = defaultdict(list)
    for batch in batches:
        numbers[batch.partition].append(batch.number)
        if Batch.hash_of(batch.examples) != batch.content_hash:
            yield f"I2: the content hash of {batch.batch_id} is not that of its content"
        for example in batch.examples:
            identity = (example.response_id, example.revision)
            if identity in seen:
                yield f"I2: {identity} is in {seen[identity]} and in {batch.batch_id}"
            seen[identity] = batch.batch_id
    for partition, found in numbers.items():
        if sorted(found) != list(range(1, len(found) + 1)):
            yield f"I2: the batches of partition {partition} are numbered {sorted(found)}"


def _newest(examples: Iterable[ExampleRevision]) -> Newest:
    found: dict[str, ExampleRevision] = {}
    for example in examples:
        if example.response_id not in found or found[example.response_id].revision < example.revision:
            found[example.response_id] = example
    return {
        response_id: ("upsert", tuple((signal.event_id, str(signal.value)) for signal in example.signals))
        for response_id, example in found.items()
        if example.op == "upsert"
    }


def _newest_revisions_equal_a_recomputation(kafka: str, batches: list[Batch]) -> Iterable[str]:
    """I3, I4: the pure core over the input topics, offline."""
    inputs: dict[int, list[Record]] = defaultdict(list)
    for topic in (CHAT_RESPONSES, FEEDBACK_EVENTS):
        for record in read_all(kafka, topic):
            inputs[record.partition].append(record)
    recomputed: list[ExampleRevision] = []
    for partition, records in inputs.items():
        records.sort(key=lambda record: record.timestamp)
        recomputed += _offline(partition, records)
    was, should = _newest(e for batch in batches for e in batch.examples), _newest(recomputed)
    for response_id in sorted(was.keys() | should.keys()):
        if was.get(response_id) != should.get(response_id):
            yield f"I3: {response_id} is {was.get(response_id)}, offline {should.get(response_id)}"


def _offline(partition: int, records: list[Record]) -> list[ExampleRevision]:
    store, step = MemoryStore(), ProcessorStep()
    last = records[-1].timestamp if records else 0
    values = []
    for record in [*records, Tick(partition, last + 3_600_000)]:
        overlay = Overlay(store, 1_000_000)
        overlay.savepoint()
        try:
            values += [o.value for o in step(overlay, record) if o.topic == TRAINING_BATCHES.name]
        except LoopwrightError:
            continue
        store.apply(overlay.writes, 0)
    return [example for value in values for example in Batch.from_json(value).examples]


def _each_run_published_one_version(kafka: str) -> Iterable[str]:
    """I6: one version per run, numbers 1, 2, 3... each once."""
    versions = [ModelVersion.from_json(record.value) for record in read_all(kafka, MODEL_VERSIONS)]
    trained = [version for version in versions if version.ref.kind != "base"]
    runs = Counter(version.run_id for version in trained)
    yield from (f"I6: run {run} was published {count} times" for run, count in runs.items() if count > 1)
    if sorted(v.number or 0 for v in trained) != list(range(1, len(trained) + 1)):
        yield f"I6: versions are numbered {[version.number for version in trained]}"
    if len(versions) - len(trained) > 1:
        yield "I6: the base was published more than once"
