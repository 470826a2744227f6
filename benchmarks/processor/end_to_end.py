"""The processor as shipped, `python -m services.processor`, over responses and what users said of them.

Half of the records are responses, half are corrections, one for each: the dearest kind, as each is joined, counted,
batched and told of. All responses come first, so that the two of a key lie half of all records apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from benchmarks.processor.harness import Lab, Running, python
from benchmarks.processor.kafka_client import APPEND, Sent, WrongResult, value_of
from benchmarks.processor.onestage import WARM_UP
from benchmarks.processor.votes import SPREAD
from deploy.local.ports import choose
from shared.cloudevents import CloudEventFactory
from shared.events import ChatResponse, Correction
from shared.stream.offsets import Positions
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
    TOPICS,
    TRAINING_BATCHES,
)

APPLICATION = "loopwright-processor"
BATCH_AGE_S = 1.0
"""When a quiet partition cuts its last batch. Shipped: 30 s, which would only make the end of a run longer."""
QUIET_S = 4.0
TEXT_BYTES = 65_536
USED = (
    CHAT_RESPONSES, FEEDBACK_EVENTS, ERASURE_REQUESTS, ERASURE_REPORTS, PROCESSOR_CHANGELOG, TRAINING_BATCHES,
    FEEDBACK_OUTCOMES, FEEDBACK_TALLIES, DEAD_LETTERS,
)  # fmt: skip
AT = "2026-01-01T12:00:00Z"
RESPONSES, CORRECTIONS = (
    CloudEventFactory(CHAT_RESPONSES, ChatResponse, "bench"),
    CloudEventFactory(FEEDBACK_EVENTS, Correction, "bench"),
)


@dataclass(frozen=True)
class Conversation:
    """Responses and corrections of `record_bytes` each, without headers."""

    pairs: int
    record_bytes: int
    users: int | None = None
    """So many take turns; None: each correction comes from another one."""
    known: int | None = None
    """So many responses are spoken of in turn, each again and again by the same user; None: each once."""

    @cached_property
    def _text(self) -> str:
        dice = random.Random(7)
        letters = "aabcdeeefghiilmnnoorrsttu"
        words = ["".join(dice.choices(letters, k=dice.randint(2, 10))) for _ in range(2_000)]
        return " ".join(dice.choices(words, k=TEXT_BYTES // 4))[:TEXT_BYTES]

    def _says(self, i: int, size: int) -> str:
        start = i * SPREAD % (TEXT_BYTES - size)
        return self._text[start : start + size]

    def responses(self) -> Iterator[Sent]:
        return (self.response(i) for i in range(self.pairs))

    def corrections(self) -> Iterator[Sent]:
        return (self.correction(i) for i in range(self.pairs))

    def response(self, i: int) -> Sent:
        i = self._about(i)
        name = _response_id(i)
        question, answer = {"role": "user", "content": ""}, {"index": 0, "text": ""}
        body: dict[str, Any] = {
            "schema_version": 1,
            "line": "assistant",
            "response_id": name,
            "version": "assistant@base-00000000",
            "status": "completed",
            "created_at": AT,
            "messages": [question],
            "choices": [answer],
        }
        room = self.record_bytes - len(orjson.dumps(body))
        question["content"] = self._says(i, room // 3)
        answer["text"] = self._says(3 * i + 1, room - room // 3)
        return name.encode(), orjson.dumps(body), _headers(RESPONSES, i)

    def correction(self, i: int) -> Sent:
        about = self._about(i)
        name = _response_id(about)
        body = {
            "schema_version": 1,
            "line": "assistant",
            "response_id": name,
            "event_id": f"e-{i:016x}",
            "user_id": f"u_{about if self.users is None else about % self.users:016x}",
            "received_at": AT,
            "kind": "correction",
            "value": "",
        }
        body["value"] = self._says(7 * i + 2, self.record_bytes - len(orjson.dumps(body)))
        return name.encode(), orjson.dumps(body), _headers(CORRECTIONS, i)

    def _about(self, i: int) -> int:
        return i if self.known is None else i % self.known


def _response_id(i: int) -> str:
    return f"r-{i * SPREAD % 2**64:016x}"


def _headers(seal: CloudEventFactory, i: int) -> tuple[tuple[str, bytes], ...]:
    trace = f"00-{i * SPREAD % 2**64:016x}{i:016x}-{i * SPREAD % 2**64:016x}-01"
    return seal(b"", None, f"{i:x}", AT, None, trace).headers


@contextmanager
def own_topics(lab: Lab) -> Iterator[None]:
    """The processor's topics, new and empty; removed at the end. Never on a Kafka that has them already."""
    refuse_used_kafka(lab)
    lab.log.delete(TOPICS)
    lab.log.forget_group(APPLICATION)
    lab.log.create({topic.name: topic.broker_config() | APPEND for topic in USED}, lab.partitions)
    try:
        yield
    finally:
        lab.log.delete(TOPICS)


@contextmanager
def processor(lab: Lab, arm: str) -> Iterator[Running]:
    """The service, its settings those it is shipped with."""
    name, folder = lab.fresh(arm)
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": lab.broker.address,
        "LOOPWRIGHT_PARTITIONS": str(lab.partitions),
        "LOOPWRIGHT_DATA_DIR": str(folder),
        "LOOPWRIGHT_PROCESSOR_PORT": str(choose({"processor": 0})["processor"]),
        "LOOPWRIGHT_PROCESSOR_BATCH_AGE_S": str(BATCH_AGE_S),
        "LOOPWRIGHT_LOG_LEVEL": "WARNING",
    }
    with lab.running(name, python("services.processor"), env) as running:
        yield running
    lab.clean(name, folder)


def refuse_used_kafka(lab: Lab) -> None:
    """Raises `WrongResult` where a Kafka that was there before carries Loopwright's topics."""
    if lab.broker.pid is None and (there := sorted(lab.log.topics() & TOPICS.keys())):
        raise WrongResult(
            f"The Kafka at {lab.broker.address} carries {', '.join(there)}, which this arm would remove: name "
            "another in KAFKA_BOOTSTRAP_SERVERS, or none."
        )


def measure(lab: Lab, events: int, record_bytes: int) -> dict[str, float]:
    """Records a second, responses and corrections together.

    By the append times of the positions in the changelog, which are written with the outputs they belong to. Raises
    `WrongResult` unless each correction is in one batch, has one outcome and one tally.
    """
    talk = Conversation(events // 2, record_bytes)
    with own_topics(lab):
        lab.log.load(CHAT_RESPONSES.name, talk.responses())
        lab.log.load(FEEDBACK_EVENTS.name, talk.corrections())
        with processor(lab, f"processor-{record_bytes}") as running:
            running.until_written(lab.log, FEEDBACK_OUTCOMES.name, talk.pairs, QUIET_S)
            load = running.load()
        if complaints := complaints_of(lab, talk.pairs):
            raise WrongResult(f"{talk.pairs} corrections of {record_bytes} bytes: {', '.join(complaints)}")
        found = positions_rate(lab, 2 * talk.pairs)
    return {"events_per_s": round(found, 1), "events": 2 * talk.pairs, **load}


def complaints_of(lab: Lab, pairs: int) -> list[str]:
    """What is wrong with the outputs for so many corrections."""
    told, tallied, batched = bytearray(pairs), bytearray(pairs), bytearray(pairs)
    strange = 0
    for message in lab.log.read(FEEDBACK_OUTCOMES.name):
        outcome = orjson.loads(value_of(message))
        strange += outcome["outcome"] != "batched"
        _mark(told, outcome["event_id"])
    for message in lab.log.read(FEEDBACK_TALLIES.name):
        tally = orjson.loads(value_of(message))
        strange += tally["corrections"] != 1
        _mark(tallied, tally["user_id"])
    for message in lab.log.read(TRAINING_BATCHES.name):
        for example in orjson.loads(value_of(message))["examples"]:
            strange += example["revision"] != 1 or not example["messages"]
            _mark(batched, example["signals"][0]["event_id"])
    found = [
        f"{what}: {marks.count(0)} lost, {sum(1 for times in marks if times > 1)} doubled"
        for what, marks in (("outcomes", told), ("tallies", tallied), ("batches", batched))
        if marks != b"\x01" * pairs
    ]
    dead = sum(lab.log.ends(DEAD_LETTERS.name).values())
    return (
        found + [f"{strange} are not as they must be"] * bool(strange) + [f"{dead} dead letters"] * bool(dead)
    )


def _mark(marks: bytearray, name: str) -> None:
    """`name` is that of an event or a user: two characters, then the number in hex."""
    i = int(name[2:], 16)
    marks[i] = min(255, marks[i] + 1)


def positions_rate(lab: Lab, records: int) -> float:
    """Records a second over the last nine tenths, from when the positions beyond them were committed."""
    taken = []
    for message in lab.log.read(PROCESSOR_CHANGELOG.name):
        if message.key() == POSITIONS_KEY:
            offsets = Positions.decode(value_of(message)).offsets
            taken.append((message.timestamp()[1], message.partition(), sum(offsets.values())))
    taken.sort()
    at: dict[int | None, int] = {}
    began: tuple[int, int] | None = None
    for time_ms, partition, consumed in taken:
        at[partition] = consumed
        whole = sum(at.values())
        if began is None and whole >= WARM_UP * records:
            began = (time_ms, whole)
        if began is not None and whole >= records:
            return (whole - began[1]) / max(0.001, (time_ms - began[0]) / 1000)
    raise WrongResult(f"the positions in the changelog end at {sum(at.values())} of {records}")


def forms(pairs: int, rate: int, lag_s: float) -> Iterator[tuple[str, int]]:
    """("response" or "correction", number); at `rate` a second each correction comes `lag_s` after its response."""
    lag = max(1, round(rate * lag_s / 2))
    for i in range(pairs + lag):
        if i < pairs:
            yield "response", i
        if i >= lag:
            yield "correction", i - lag
