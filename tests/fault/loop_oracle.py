"""Checks I1-I4 and I6 over everything that the loop has written to the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from shared.adapters.kafka import KafkaLogReader
from shared.dead_letters import parse_origin
from shared.kafka_connection import KafkaConnection
from shared.records import Record
from shared.topics import (
    CHAT_RESPONSES,
    DEAD_LETTERS,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    MODEL_VERSIONS,
    PROCESSOR_CHANGELOG,
    TRAINING_BATCHES,
    Topic,
)
from shared.versions import ModelVersion
from tests.fault import oracle

PROCESSOR_TOPICS = (CHAT_RESPONSES, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES, TRAINING_BATCHES, FEEDBACK_TALLIES)


def read_all(kafka: str, topic: Topic) -> list[Record]:
    """Return every committed record of a topic."""
    reader = KafkaLogReader(KafkaConnection(kafka), "oracle", [topic.name])
    records = []
    while not reader.at_end():
        records += reader.poll(0.2)
    reader.close()
    return records


def violations(kafka: str) -> list[str]:
    """Return the violations found; empty if all invariants hold. The processor must have consumed all of its inputs."""
    dead = [r for r in read_all(kafka, DEAD_LETTERS) if parse_origin(r).topic in oracle.INPUTS]
    changelog = read_all(kafka, PROCESSOR_CHANGELOG)
    contents = oracle.LogContents({t.name: read_all(kafka, t) for t in PROCESSOR_TOPICS}, dead, changelog)
    return [*oracle.violations(contents), *_each_run_published_one_version(kafka)]


def _each_run_published_one_version(kafka: str) -> Iterable[str]:
    """Check I6: one version per run, with the numbers 1, 2, 3... each once."""
    versions = [ModelVersion.from_json(record.value) for record in read_all(kafka, MODEL_VERSIONS)]
    trained = [version for version in versions if version.ref.kind != "base"]
    runs = Counter(version.run_id for version in trained)
    yield from (f"I6: run {run} was published {count} times" for run, count in runs.items() if count > 1)
    if sorted(v.number or 0 for v in trained) != list(range(1, len(trained) + 1)):
        yield f"I6: versions are numbered {[version.number for version in trained]}"
    if len(versions) - len(trained) > 1:
        yield "I6: the base was published more than once"
