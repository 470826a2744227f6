"""Latency at a steady rate: from the append of an input until a read_committed consumer gets its output."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
from confluent_kafka import Message

from benchmarks.processor import end_to_end
from benchmarks.processor.harness import (
    SAMPLE_INTERVAL_S,
    STALLED_AFTER_S,
    BenchmarkRun,
    MeasuredProcess,
    python,
    read_status,
)
from benchmarks.processor.job import Job
from benchmarks.processor.kafka_client import KafkaClient, OutgoingRecord, WrongResult, message_value
from benchmarks.processor.one_stage import checked_rate, new_job
from benchmarks.processor.votes import Workload
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES, FEEDBACK_TALLIES

RATE = 500
WARM_UP_S = 5.0
"""Duration at the beginning that is not counted: first fetches, first transactions."""
FEEDBACK_DELAY_S = 2.0
"""Time between a response and its feedback."""


@dataclass(frozen=True)
class ReceivedOutput:
    """An output as a consumer received it."""

    topic: str
    partition: int
    appended_ms: int
    value: bytes
    received_at: float
    """Seconds since the epoch."""


class OutputFollower:
    """Reads the outputs that are committed from now on in a background thread."""

    def __init__(self, kafka: KafkaClient, topics: Sequence[str]) -> None:
        self.outputs: list[ReceivedOutput] = []
        self._reader = kafka.open_reader(topics)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="follower", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.is_set():
            message = self._reader.poll(0.1)
            if message is not None and message.error() is None:
                self.outputs.append(_received(message, time.time()))

    def wait_until(
        self, holds: Callable[[list[ReceivedOutput]], bool], running: MeasuredProcess, description: str
    ) -> None:
        """Wait until `holds(outputs)`. Raises `WrongResult` after a timeout, or if the process ends."""
        until = time.monotonic() + STALLED_AFTER_S
        while not holds(self.outputs):
            running.sample()
            if time.monotonic() > until:
                raise WrongResult(
                    f"not within {STALLED_AFTER_S:.0f} s: {description}; {len(self.outputs)} outputs were read"
                )
            time.sleep(SAMPLE_INTERVAL_S)

    def close(self) -> None:
        """Stop the thread and close the consumer."""
        self._stop.set()
        self._thread.join()
        self._reader.close()


@contextmanager
def follow_outputs(kafka: KafkaClient, *topics: str) -> Iterator[OutputFollower]:
    """Follow topics until the end of the block."""
    follower = OutputFollower(kafka, topics)
    try:
        yield follower
    finally:
        follower.close()


def _received(message: Message, at: float) -> ReceivedOutput:
    topic, partition = message.topic(), message.partition()
    assert topic is not None and partition is not None
    return ReceivedOutput(topic, partition, message.timestamp()[1], message_value(message), at)


def send_at_rate(
    kafka: KafkaClient,
    records: Iterable[tuple[str, OutgoingRecord]],
    rate: int,
    go_on: Callable[[], bool] = lambda: True,
) -> int:
    """Send (topic, record) pairs at `rate` per second while `go_on()` returns True. Returns how many were sent."""
    producer, began, count = kafka.producer(linger_ms=0), time.monotonic(), 0
    for topic, record in records:
        if not go_on():
            break
        ahead = began + count / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        producer.produce(topic, record[1], record[0], headers=list(record[2]) if len(record) == 3 else [])
        producer.poll(0)
        count += 1
    producer.flush(STALLED_AFTER_S)
    return count


def percentile(values: list[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie. Sorts the list."""
    values.sort()
    return values[min(len(values) - 1, int(share * len(values)))]


def wait_until_running(folder: Path, partitions: int, running: MeasuredProcess) -> float:
    """Wait until an engine runs this many partitions, and return when it began to (seconds since the epoch)."""
    until = time.monotonic() + 4 * STALLED_AFTER_S
    while True:
        running.sample()
        status = read_status(folder)
        if status.get("state") == "running" and len(status["partitions"]) == partitions:
            return float(status["at"])
        if time.monotonic() > until:
            raise WrongResult(f"the engine does not run {partitions} partitions; its status is {status}")
        time.sleep(0.05)


def measure_one_stage(bench: BenchmarkRun, seconds: float) -> dict[str, float]:
    """Return the latency of the one-stage job."""
    count = round(RATE * seconds)
    workload = Workload.two_per_key(count)
    source, folder = bench.new_name("slow-votes")
    bench.kafka.create({source: {}}, bench.partitions)
    job = new_job(bench, "latency", workload, source)
    with bench.running(job.name, python("benchmarks.processor.jobs.engine", job.to_json())) as running:
        wait_until_running(Path(job.folder), bench.partitions, running)
        with follow_outputs(bench.kafka, job.output) as follower:
            send_at_rate(bench.kafka, ((source, event) for event in workload), RATE)
            follower.wait_until(
                lambda outputs: len(outputs) >= workload.events, running, "an output for each event"
            )
            outputs = list(follower.outputs)
    checked_rate(bench, job, workload, 0)
    sent: dict[str, int] = {}
    for message in bench.kafka.read(source):
        # Only the first record of an event counts; the output of a repetition has another key.
        sent.setdefault(_event_key(message_value(message)), message.timestamp()[1])
    delays = _delays(sent, ((_event_key(output.value), output) for output in outputs))
    _remove(bench, job, source, folder)
    return {"p50_ms": round(percentile(delays, 0.5), 1), "p99_ms": round(percentile(delays, 0.99), 1)}


def _remove(bench: BenchmarkRun, job: Job, source: str, folder: Path) -> None:
    bench.clean(job.name, Path(job.folder))
    bench.clean(source, folder)


def _event_key(value: bytes) -> str:
    """Return the event id of an event or output, and whether it is a repetition."""
    event = orjson.loads(value)
    return f"{event['event_id']} {event.get('repeated', False)}"


def _delays(sent: dict[str, int], outputs: Iterable[tuple[str, ReceivedOutput]]) -> list[float]:
    """Return the delays in ms of the records sent after the warm-up, by key. Keys missing on one side are ignored."""
    first = min(sent.values()) + WARM_UP_S * 1000
    return [output.received_at * 1000 - sent[key] for key, output in outputs if sent.get(key, 0) >= first]


def measure_processor(bench: BenchmarkRun, seconds: float) -> dict[str, float]:
    """Return the latency of the processor, from a correction to its user's tally and to its outcome.

    A tally is written at once. An outcome comes with its batch: at 64 examples in a partition, or at the batch's age.
    """
    pairs = round(RATE * seconds / 2)
    workload = end_to_end.FeedbackWorkload(pairs, 350)

    def records() -> Iterator[tuple[str, OutgoingRecord]]:
        for kind, i in end_to_end.interleaved(pairs, RATE, min(FEEDBACK_DELAY_S, seconds / 4)):
            if kind == "response":
                yield CHAT_RESPONSES.name, workload.response(i)
            else:
                yield FEEDBACK_EVENTS.name, workload.correction(i)

    topics = (FEEDBACK_TALLIES.name, FEEDBACK_OUTCOMES.name)
    with (
        end_to_end.processor_topics(bench),
        end_to_end.running_processor(bench, "latency") as running,
        follow_outputs(bench.kafka, *topics) as follower,
    ):
        send_at_rate(bench.kafka, records(), RATE)
        follower.wait_until(
            lambda outputs: len(outputs) >= 2 * pairs, running, "a tally and an outcome for each correction"
        )
        if errors := end_to_end.find_errors(bench, pairs):
            raise WrongResult(f"{pairs} corrections, {RATE} records a second: {', '.join(errors)}")
        sent = {
            orjson.loads(message_value(m))["user_id"]: m.timestamp()[1]
            for m in bench.kafka.read(FEEDBACK_EVENTS.name)
        }
        tallied = [(orjson.loads(s.value)["user_id"], s) for s in follower.outputs if s.topic == topics[0]]
        decided = [
            (f"u_{orjson.loads(s.value)['event_id'][2:]}", s)
            for s in follower.outputs
            if s.topic == topics[1]
        ]
    tallies, outcomes = _delays(sent, tallied), _delays(sent, decided)
    return {
        "tally_p50_ms": round(percentile(tallies, 0.5), 1),
        "tally_p99_ms": round(percentile(tallies, 0.99), 1),
        "outcome_p50_ms": round(percentile(outcomes, 0.5), 1),
        "outcome_p99_ms": round(percentile(outcomes, 0.99), 1),
    }
