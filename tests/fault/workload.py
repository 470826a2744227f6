"""What apps and users send to the processor, from a seed, and a log of what was meant and what was acknowledged."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import KafkaError, Message, Producer

from shared.events import FEEDBACK, ChatResponse, Choice, Feedback
from shared.events import Message as Turn
from shared.topics import CHAT_RESPONSES, FEEDBACK_EVENTS

INTENT = "intent"
"""The header by which a record in the log is known again, whatever its bytes."""
LINES = ("assistant", "coder")
USERS = ("u_ann", "u_bob", "u_cyd", "u_dan")
VAGUE, TELLING = "bad answer", "Name the year in which it was founded"
GARBAGE = (b"", b"{", b"\xff\xfe", b"[]", b'{"line":1}', b"null")


@dataclass(frozen=True, slots=True)
class Intent:
    """One record to be sent. `at_ms`: its append time, for topics that leave that to the writer; 0: now."""

    number: int
    topic: str
    key: bytes
    value: bytes
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Sent:
    """An intent and where the log acknowledged it; (-1, -1) if it did not."""

    intent: Intent
    partition: int
    offset: int

    @property
    def acknowledged(self) -> bool:
        return self.offset >= 0


def history(seed: int, responses: int = 40, *, name: str = "", padding: int = 0) -> list[Intent]:
    """`responses` and all that may be said about them, in an order that a network might bring them.

    Corrections, edits, thumbs, ratings, comments, preferences, retractions, of unknown events too; the same again,
    conflicts, garbage, wrong keys; feedback before its response, and responses that never come. About one record in
    twenty cannot be processed. `padding`: bytes of incompressible text in each answer.
    """
    dice = random.Random(seed)
    told: list[list[tuple[str, bytes, bytes]]] = []
    for place in range(responses):
        response_id = f"{name or f's{seed}'}-r{place}"
        told.append(list(_about(dice, response_id, padding)))
    order = [number for number, story in enumerate(told) for _ in story]
    # Stories overlap in time, but not from one end to the other.
    places = sorted(range(len(order)), key=lambda at: at + dice.uniform(0, 60))
    order = [order[at] for at in places]
    left = [iter(story) for story in told]
    return [Intent(at, *next(left[number])) for at, number in enumerate(order)]


def _about(dice: random.Random, response_id: str, padding: int) -> Iterator[tuple[str, bytes, bytes]]:
    """One response's records, in order."""
    answer = _answer(dice, response_id, padding)
    events = list(_events(dice, answer))
    comes = dice.random()
    at = 0 if comes < 0.6 else dice.randint(0, len(events)) if comes < 0.9 else None
    for place, (key, value) in enumerate([*events, (b"", b"")]):
        if place == at:
            yield from _responses(dice, answer)
        if place < len(events):
            yield FEEDBACK_EVENTS.name, key, value


def _answer(dice: random.Random, response_id: str, padding: int) -> ChatResponse:
    failed = dice.random() < 0.05
    texts = (
        ()
        if failed
        else [f"Answer {n} of {response_id} {dice.randbytes(padding // 2).hex()}" for n in (0, 1)]
    )
    return ChatResponse(
        line=dice.choice(LINES),
        response_id=response_id,
        version=f"own-model-{dice.randint(1, 2)}",
        messages=(Turn(role="user", content=f"What is {response_id}?"),),
        choices=tuple(Choice(index=n, text=text) for n, text in enumerate(texts)),
        status="failed" if failed else "completed",
        user_id=dice.choice(USERS),
        created_at=datetime.now(UTC),
    )


def _responses(dice: random.Random, answer: ChatResponse) -> Iterator[tuple[str, bytes, bytes]]:
    key, topic = answer.response_id.encode(), CHAT_RESPONSES.name
    yield topic, key, answer.to_json()
    if dice.random() < 0.1:  # sent again
        yield topic, key, answer.model_copy(update={"latency_ms": 7.0}).to_json()
    if dice.random() < 0.05:  # another response under this id
        yield topic, key, answer.model_copy(update={"choices": (Choice(index=0, text="Another."),)}).to_json()
    if dice.random() < 0.05:
        yield topic, key, dice.choice(GARBAGE)


def _events(dice: random.Random, answer: ChatResponse) -> Iterator[tuple[bytes, bytes]]:
    """What users say, in order, with what networks and clients do to it."""
    said: list[Feedback] = []
    key = answer.response_id.encode()
    for number in range(dice.choice((0, 1, 2, 3, 4, 5, 8))):
        event = _event(dice, answer, f"e{number}", said)
        said.append(event)
        yield key, event.to_json()
        chance = dice.random()
        if chance < 0.12:  # the same again, as it was or as another delivery
            again = dice.choice(said)
            yield key, again.model_copy(update={"received_at": datetime.now(UTC)}).to_json()
        elif chance < 0.14:  # other content under the same id
            yield key, event.model_copy(update={"tags": ("changed",)}).to_json()
        elif chance < 0.16:
            yield key, dice.choice(GARBAGE)
        elif chance < 0.18:
            yield b"another-key", event.model_copy(update={"event_id": f"w{number}"}).to_json()


def _event(dice: random.Random, answer: ChatResponse, event_id: str, said: list[Feedback]) -> Feedback:
    kind = dice.choice(("correction", "correction", "thumbs", "rating", "comment", "preference", "retract"))
    user = dice.choice(USERS[:3])
    value: Any = {
        "correction": f"It is {dice.randrange(1000)}.",
        "thumbs": dice.choice(("up", "down")),
        "rating": dice.randint(1, 5),
        "comment": dice.choice((VAGUE, TELLING)),
        "preference": dice.choice(({"over": 1}, {"under": "Something else."})),
        "retract": f"e{dice.randrange(12)}",  # said before, said later, or never
    }[kind]
    if kind == "retract" and said and dice.random() < 0.7:
        taken_back = dice.choice(said)
        value, user = taken_back.event_id, taken_back.user_id
    if kind == "retract" and value == event_id:
        value = "never-said"
    at = datetime.now(UTC) + timedelta(seconds=dice.randint(-600, 30))
    return FEEDBACK.validate_python(
        {
            "line": answer.line,
            "response_id": answer.response_id,
            "event_id": event_id,
            "choice": dice.choice((0, 0, 0, 1, 3)) if kind == "thumbs" else 0,  # there is no 3
            "user_id": user,
            "kind": kind,
            "value": value,
            "occurred_at": dice.choice((at, None)),
            "received_at": datetime.now(UTC),
        }
    )


class Load:
    """Sends intents and keeps the log of them. One thread; a broker that is away is waited for."""

    def __init__(self, kafka: str, prefix: str) -> None:
        self._prefix = prefix
        self._acknowledged: dict[int, tuple[int, int]] = {}
        self._intents: list[Intent] = []
        self._producer = Producer(
            {
                "bootstrap.servers": kafka,
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                "log_level": 2,
                "reconnect.backoff.max.ms": 1_000,
            }
        )

    def send(self, intents: Iterable[Intent]) -> int:
        """Puts them on their way, under numbers of this log; returns how many."""
        count = 0
        for given in intents:
            intent = replace(given, number=len(self._intents))
            self._intents.append(intent)
            self._producer.produce(
                self._prefix + intent.topic,
                intent.value,
                intent.key,
                headers={INTENT: str(intent.number)},
                timestamp=intent.at_ms,
                on_delivery=self._noting(intent.number),
            )
            self._producer.poll(0)
            count += 1
        return count

    def settled(self) -> None:
        """Returns when all are acknowledged or have failed."""
        assert self._producer.flush(60) == 0

    def sent(self) -> list[Sent]:
        """The log so far."""
        return [Sent(intent, *self._acknowledged.get(intent.number, (-1, -1))) for intent in self._intents]

    def _noting(self, number: int) -> Any:
        def delivered(error: KafkaError | None, message: Message) -> None:
            partition, offset = message.partition(), message.offset()
            if error is None and partition is not None and offset is not None:
                self._acknowledged[number] = (partition, offset)

        return delivered
