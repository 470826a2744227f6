"""From the append of an input to the moment its output can be read, read_committed, at a steady rate."""

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
from benchmarks.processor.harness import LOOK_S, STUCK_S, Lab, Running, python, status
from benchmarks.processor.job import Job
from benchmarks.processor.kafka_client import Log, Sent, WrongResult, value_of
from benchmarks.processor.onestage import checked_rate, new_job
from benchmarks.processor.votes import Workload
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES, FEEDBACK_TALLIES

RATE = 500
DROPPED_S = 5.0
"""Of the beginning: first fetches, first transactions."""
LAG_S = 2.0
"""Between a response and what is said of it."""


@dataclass(frozen=True)
class Seen:
    """An output as a reader got it. `at`: seconds since the epoch, when it was handed out."""

    topic: str
    partition: int
    appended_ms: int
    value: bytes
    at: float


class Follower:
    """Reads in a thread of its own what is committed from now on, each record as soon as it can be."""

    def __init__(self, log: Log, topics: Sequence[str]) -> None:
        self.seen: list[Seen] = []
        self._reader = log.follow(topics)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="follower", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.is_set():
            message = self._reader.poll(0.1)
            if message is not None and message.error() is None:
                self.seen.append(_seen(message, time.time()))

    def until(self, holds: Callable[[list[Seen]], bool], running: Running, what: str) -> None:
        """Raises `WrongResult` where it does not come, or the process ends."""
        until = time.monotonic() + STUCK_S
        while not holds(self.seen):
            running.look()
            if time.monotonic() > until:
                raise WrongResult(f"not within {STUCK_S:.0f} s: {what}; {len(self.seen)} outputs were read")
            time.sleep(LOOK_S)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._reader.close()


@contextmanager
def following(log: Log, *topics: str) -> Iterator[Follower]:
    follower = Follower(log, topics)
    try:
        yield follower
    finally:
        follower.close()


def _seen(message: Message, at: float) -> Seen:
    topic, partition = message.topic(), message.partition()
    assert topic is not None and partition is not None
    return Seen(topic, partition, message.timestamp()[1], value_of(message), at)


def paced(
    log: Log, records: Iterable[tuple[str, Sent]], rate: int, go_on: Callable[[], bool] = lambda: True
) -> int:
    """Sends (topic, record) at `rate` a second for as long as `go_on` says; returns how many."""
    sender, began, count = log.sender(linger_ms=0), time.monotonic(), 0
    for topic, record in records:
        if not go_on():
            break
        ahead = began + count / rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        sender.produce(topic, record[1], record[0], headers=list(record[2]) if len(record) == 3 else [])
        sender.poll(0)
        count += 1
    sender.flush(STUCK_S)
    return count


def percentile(values: list[float], share: float) -> float:
    values.sort()
    return values[min(len(values) - 1, int(share * len(values)))]


def until_running(folder: Path, partitions: int, running: Running) -> float:
    """When (seconds since the epoch) the engine there had restored and begun so many partitions."""
    until = time.monotonic() + 4 * STUCK_S
    while True:
        running.look()
        found = status(folder)
        if found.get("state") == "running" and len(found["partitions"]) == partitions:
            return float(found["at"])
        if time.monotonic() > until:
            raise WrongResult(f"the engine does not run {partitions} partitions; it says {found}")
        time.sleep(0.05)


def one_stage(lab: Lab, seconds: float) -> dict[str, float]:
    """The one-stage job."""
    count = round(RATE * seconds)
    workload = Workload.halves(count)
    source, folder = lab.fresh("slow-votes")
    lab.log.create({source: {}}, lab.partitions)
    job = new_job(lab, "latency", workload, source)
    with lab.running(job.name, python("benchmarks.processor.jobs.engine", job.to_json())) as running:
        until_running(Path(job.folder), lab.partitions, running)
        with following(lab.log, job.output) as follower:
            paced(lab.log, ((source, event) for event in workload), RATE)
            follower.until(lambda seen: len(seen) >= workload.events, running, "an output for each event")
            seen = list(follower.seen)
    checked_rate(lab, job, workload, 0)
    sent: dict[str, int] = {}
    for message in lab.log.read(source):
        # Of an event that is sent a second time the first counts; the other's output names it a repeat.
        sent.setdefault(_voted(value_of(message)), message.timestamp()[1])
    delays = _delays(sent, ((_voted(one.value), one) for one in seen))
    _clean(lab, job, source, folder)
    return {"p50_ms": round(percentile(delays, 0.5), 1), "p99_ms": round(percentile(delays, 0.99), 1)}


def _clean(lab: Lab, job: Job, source: str, folder: Path) -> None:
    lab.clean(job.name, Path(job.folder))
    lab.clean(source, folder)


def _voted(value: bytes) -> str:
    """An event, and whether it is told as a repeat."""
    event = orjson.loads(value)
    return f"{event['event_id']} {event.get('repeated', False)}"


def _delays(sent: dict[str, int], seen: Iterable[tuple[str, Seen]]) -> list[float]:
    """In ms, of what was sent after the first seconds. What the two do not share is left out."""
    first = min(sent.values()) + DROPPED_S * 1000
    return [one.at * 1000 - sent[name] for name, one in seen if sent.get(name, 0) >= first]


def as_shipped(lab: Lab, seconds: float) -> dict[str, float]:
    """The processor: from a correction to its user's tally, which is written at once, and to its outcome.

    An outcome comes with its batch: at 64 examples of a partition, or when the batch has its age.
    """
    pairs = round(RATE * seconds / 2)
    talk = end_to_end.Conversation(pairs, 350)

    def records() -> Iterator[tuple[str, Sent]]:
        for form, i in end_to_end.forms(pairs, RATE, min(LAG_S, seconds / 4)):
            if form == "response":
                yield CHAT_RESPONSES.name, talk.response(i)
            else:
                yield FEEDBACK_EVENTS.name, talk.correction(i)

    topics = (FEEDBACK_TALLIES.name, FEEDBACK_OUTCOMES.name)
    with (
        end_to_end.own_topics(lab),
        end_to_end.processor(lab, "latency") as running,
        following(lab.log, *topics) as follower,
    ):
        paced(lab.log, records(), RATE)
        follower.until(
            lambda seen: len(seen) >= 2 * pairs, running, "a tally and an outcome for each correction"
        )
        if complaints := end_to_end.complaints_of(lab, pairs):
            raise WrongResult(f"{pairs} corrections, {RATE} records a second: {', '.join(complaints)}")
        sent = {
            orjson.loads(value_of(m))["user_id"]: m.timestamp()[1] for m in lab.log.read(FEEDBACK_EVENTS.name)
        }
        tallied = [(orjson.loads(s.value)["user_id"], s) for s in follower.seen if s.topic == topics[0]]
        told = [
            (f"u_{orjson.loads(s.value)['event_id'][2:]}", s) for s in follower.seen if s.topic == topics[1]
        ]
    tallies, outcomes = _delays(sent, tallied), _delays(sent, told)
    return {
        "tally_p50_ms": round(percentile(tallies, 0.5), 1),
        "tally_p99_ms": round(percentile(tallies, 0.99), 1),
        "outcome_p50_ms": round(percentile(outcomes, 0.5), 1),
        "outcome_p99_ms": round(percentile(outcomes, 0.99), 1),
    }
