"""Throughput of the processor as shipped, `python -m services.processor`, over responses and feedback.

Half of the records are responses, half are corrections, one for each response. Corrections are the most expensive kind,
because each is joined, counted, batched and gets an outcome. All responses come first, so that the two records of a key
are half of all records apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from benchmarks.processor.harness import BenchmarkRun, MeasuredProcess, python
from benchmarks.processor.kafka_client import LOG_APPEND_TIME, OutgoingRecord, WrongResult, message_value
from benchmarks.processor.one_stage import WARM_UP_SHARE
from benchmarks.processor.votes import HASH_MULTIPLIER
from deploy.local.ports import choose_ports
from shared.cloudevents import CloudEventFactory
from shared.events import ChatResponse, Correction
from shared.stream.partition import Positions
from shared.stream.state_store import POSITIONS_KEY
from shared.topics import (
    CHAT_RESPONSES,
    DEAD_LETTERS,
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    FEEDBACK_EVENTS,
    FEEDBACK_OUTCOMES,
    FEEDBACK_TALLIES,
    PROCESSOR_CHANGELOG,
    RESPONSE_SAMPLES,
    TOPICS,
    TRAINING_BATCHES,
)

APPLICATION = "loopwright-processor"
BATCH_AGE_S = 1.0
"""Age at which an idle partition cuts its last batch. The default of 30 s would only prolong the end of a run."""
SETTLE_S = 4.0
TEXT_BYTES = 65_536
USED_TOPICS = (
    CHAT_RESPONSES, FEEDBACK_EVENTS, ERASURE_REQUESTS, ERASURE_REPORTS, PROCESSOR_CHANGELOG, TRAINING_BATCHES,
    FEEDBACK_OUTCOMES, FEEDBACK_TALLIES, RESPONSE_SAMPLES, DEAD_LETTERS,
)  # fmt: skip
CREATED_AT = "2026-01-01T12:00:00Z"
RESPONSE_SEAL, CORRECTION_SEAL = (
    CloudEventFactory(CHAT_RESPONSES, ChatResponse, "bench"),
    CloudEventFactory(FEEDBACK_EVENTS, Correction, "bench"),
)


@dataclass(frozen=True)
class FeedbackWorkload:
    """Responses and corrections of `record_bytes` each, not counting headers."""

    pairs: int
    record_bytes: int
    users: int | None = None
    """Number of users that take turns; None for a new user with each correction."""
    response_count: int | None = None
    """Number of responses that are repeated in turn, each with corrections by one user; None to send each once."""

    @cached_property
    def _text(self) -> str:
        rng = random.Random(7)
        letters = "aabcdeeefghiilmnnoorrsttu"
        words = ["".join(rng.choices(letters, k=rng.randint(2, 10))) for _ in range(2_000)]
        return " ".join(rng.choices(words, k=TEXT_BYTES // 4))[:TEXT_BYTES]

    def _text_of(self, i: int, size: int) -> str:
        start = i * HASH_MULTIPLIER % (TEXT_BYTES - size)
        return self._text[start : start + size]

    def responses(self) -> Iterator[OutgoingRecord]:
        """Return all responses."""
        return (self.response(i) for i in range(self.pairs))

    def corrections(self) -> Iterator[OutgoingRecord]:
        """Return all corrections."""
        return (self.correction(i) for i in range(self.pairs))

    def response(self, i: int) -> OutgoingRecord:
        """Return response `i`."""
        i = self._response_number(i)
        name = _response_id(i)
        question, answer = {"role": "user", "content": ""}, {"index": 0, "text": ""}
        body: dict[str, Any] = {
            "schema_version": 1,
            "line": "assistant",
            "response_id": name,
            "version": "assistant@base-00000000",
            "status": "completed",
            "created_at": CREATED_AT,
            "messages": [question],
            "choices": [answer],
        }
        text_bytes = self.record_bytes - len(orjson.dumps(body))
        question["content"] = self._text_of(i, text_bytes // 3)
        answer["text"] = self._text_of(3 * i + 1, text_bytes - text_bytes // 3)
        return name.encode(), orjson.dumps(body), _headers(RESPONSE_SEAL, i)

    def correction(self, i: int) -> OutgoingRecord:
        """Return correction `i`, of the same response."""
        number = self._response_number(i)
        name = _response_id(number)
        body = {
            "schema_version": 1,
            "line": "assistant",
            "response_id": name,
            "event_id": f"e-{i:016x}",
            "user_id": f"u_{number if self.users is None else number % self.users:016x}",
            "received_at": CREATED_AT,
            "kind": "correction",
            "value": "",
        }
        body["value"] = self._text_of(7 * i + 2, self.record_bytes - len(orjson.dumps(body)))
        return name.encode(), orjson.dumps(body), _headers(CORRECTION_SEAL, i)

    def _response_number(self, i: int) -> int:
        return i if self.response_count is None else i % self.response_count


def _response_id(i: int) -> str:
    return f"r-{i * HASH_MULTIPLIER % 2**64:016x}"


def _headers(seal: CloudEventFactory, i: int) -> tuple[tuple[str, bytes], ...]:
    trace = f"00-{i * HASH_MULTIPLIER % 2**64:016x}{i:016x}-{i * HASH_MULTIPLIER % 2**64:016x}-01"
    return seal(b"", None, f"{i:x}", CREATED_AT, None, trace).headers


@contextmanager
def processor_topics(bench: BenchmarkRun) -> Iterator[None]:
    """Create the processor's topics, and delete them at the end of the block.

    Raises `WrongResult` on a broker that was not started here and has such topics already.
    """
    refuse_existing_topics(bench)
    bench.kafka.delete(TOPICS)
    bench.kafka.delete_group(APPLICATION)
    bench.kafka.create(
        {topic.name: topic.broker_config() | LOG_APPEND_TIME for topic in USED_TOPICS}, bench.partitions
    )
    try:
        yield
    finally:
        bench.kafka.delete(TOPICS)


@contextmanager
def running_processor(bench: BenchmarkRun, arm: str) -> Iterator[MeasuredProcess]:
    """Run the service with its default settings until the end of the block."""
    name, folder = bench.new_name(arm)
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": bench.broker.address,
        "LOOPWRIGHT_PARTITIONS": str(bench.partitions),
        "LOOPWRIGHT_DATA_DIR": str(folder),
        "LOOPWRIGHT_PROCESSOR_PORT": str(choose_ports({"processor": 0})["processor"]),
        "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": str(BATCH_AGE_S),
        "LOOPWRIGHT_LOG_LEVEL": "WARNING",
    }
    with bench.running(name, python("services.processor"), env) as running:
        yield running
    bench.clean(name, folder)


def refuse_existing_topics(bench: BenchmarkRun) -> None:
    """Raise `WrongResult` if a broker that was not started here has Loopwright's topics."""
    if bench.broker.pid is None and (existing := sorted(bench.kafka.topics() & TOPICS.keys())):
        raise WrongResult(
            f"the broker at {bench.broker.address} has the topics {', '.join(existing)}, which this arm would delete. "
            "Name another broker in KAFKA_BOOTSTRAP_SERVERS, or unset it."
        )


def measure(bench: BenchmarkRun, events: int, record_bytes: int) -> dict[str, float]:
    """Return records per second, responses and corrections together.

    The rate is computed from the append times of the positions in the changelog, which are committed with the outputs.
    Raises `WrongResult` unless each correction is in one batch and has one outcome and one tally.
    """
    workload = FeedbackWorkload(events // 2, record_bytes)
    with processor_topics(bench):
        bench.kafka.load(CHAT_RESPONSES.name, workload.responses())
        bench.kafka.load(FEEDBACK_EVENTS.name, workload.corrections())
        with running_processor(bench, f"processor-{record_bytes}") as running:
            running.wait_until_written(bench.kafka, FEEDBACK_OUTCOMES.name, workload.pairs, SETTLE_S)
            load = running.load()
        if errors := find_errors(bench, workload.pairs):
            raise WrongResult(f"{workload.pairs} corrections of {record_bytes} bytes: {', '.join(errors)}")
        rate = positions_rate(bench, 2 * workload.pairs)
    return {"events_per_s": round(rate, 1), "events": 2 * workload.pairs, **load}


def find_errors(bench: BenchmarkRun, pairs: int) -> list[str]:
    """Return the errors in the outputs for this many corrections."""
    outcomes, tallies, batches = bytearray(pairs), bytearray(pairs), bytearray(pairs)
    unexpected = 0
    for message in bench.kafka.read(FEEDBACK_OUTCOMES.name):
        outcome = orjson.loads(message_value(message))
        unexpected += outcome["outcome"] != "batched"
        _count(outcomes, outcome["event_id"])
    for message in bench.kafka.read(FEEDBACK_TALLIES.name):
        tally = orjson.loads(message_value(message))
        unexpected += tally["corrections"] != 1
        _count(tallies, tally["user_id"])
    for message in bench.kafka.read(TRAINING_BATCHES.name):
        for example in orjson.loads(message_value(message))["examples"]:
            unexpected += example["revision"] != 1 or not example["messages"]
            _count(batches, example["signals"][0]["event_id"])
    errors = [
        f"{kind}: {counts.count(0)} lost, {sum(1 for count in counts if count > 1)} duplicated"
        for kind, counts in (("outcomes", outcomes), ("tallies", tallies), ("batches", batches))
        if counts != b"\x01" * pairs
    ]
    dead = sum(bench.kafka.ends(DEAD_LETTERS.name).values())
    return (
        errors
        + [f"{unexpected} unexpected outputs"] * bool(unexpected)
        + [f"{dead} dead letters"] * bool(dead)
    )


def _count(counts: bytearray, name: str) -> None:
    """Count an event id or user id: two characters, then the number in hex."""
    i = int(name[2:], 16)
    counts[i] = min(255, counts[i] + 1)


def positions_rate(bench: BenchmarkRun, records: int) -> float:
    """Return records per second over the last nine tenths, by the commits of the positions after them."""
    commits = []
    for message in bench.kafka.read(PROCESSOR_CHANGELOG.name):
        if message.key() == POSITIONS_KEY:
            offsets = Positions.decode(message_value(message)).offsets
            commits.append((message.timestamp()[1], message.partition(), sum(offsets.values())))
    commits.sort()
    at: dict[int | None, int] = {}
    began: tuple[int, int] | None = None
    for time_ms, partition, consumed in commits:
        at[partition] = consumed
        total = sum(at.values())
        if began is None and total >= WARM_UP_SHARE * records:
            began = (time_ms, total)
        if began is not None and total >= records:
            return (total - began[1]) / max(0.001, (time_ms - began[0]) / 1000)
    raise WrongResult(f"the positions in the changelog end at {sum(at.values())} of {records} records")


def interleaved(pairs: int, rate: int, lag_s: float) -> Iterator[tuple[str, int]]:
    """Yield ("response" or "correction", number): at `rate` per second, corrections come `lag_s` after the response."""
    lag = max(1, round(rate * lag_s / 2))
    for i in range(pairs + lag):
        if i < pairs:
            yield "response", i
        if i >= lag:
            yield "correction", i - lag
