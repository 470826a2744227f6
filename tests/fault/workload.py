"""Random records of apps and users, from a seed, and a record of everything sent and acknowledged."""

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

INTENT_HEADER = "intent"
"""The header that identifies a record in the log by the number of its intent."""
LINES = ("assistant", "coder")
USERS = ("u_ann", "u_bob", "u_cyd", "u_dan")
VAGUE, USEFUL = "bad answer", "Name the year in which it was founded"
GARBAGE = (b"", b"{", b"\xff\xfe", b"[]", b'{"line":1}', b"null")


@dataclass(frozen=True, slots=True)
class Intent:
    """One record to send. `at_ms` is its append time, for topics that leave that to the writer; 0 means now."""

    number: int
    topic: str
    key: bytes
    value: bytes
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Sent:
    """An intent, and the place at which the log acknowledged it: (-1, -1) if it did not."""

    intent: Intent
    partition: int
    offset: int

    @property
    def acknowledged(self) -> bool:
        return self.offset >= 0


def history(seed: int, responses: int = 40, *, name: str = "", padding: int = 0) -> list[Intent]:
    """Return responses and feedback on them, in an order in which a network might deliver them.

    There are corrections, edits, thumbs, ratings, comments, preferences, and retractions, also of unknown events;
    repetitions, conflicts, garbage and wrong keys; feedback before its response, and responses that never come. About
    one record in twenty cannot be processed. `padding` is the size of incompressible text in each answer, in bytes.
    """
    rng = random.Random(seed)
    stories: list[list[tuple[str, bytes, bytes]]] = []
    for place in range(responses):
        response_id = f"{name or f's{seed}'}-r{place}"
        stories.append(list(_story(rng, response_id, padding)))
    order = [number for number, story in enumerate(stories) for _ in story]
    # Stories of different responses overlap, but only with their neighbours.
    places = sorted(range(len(order)), key=lambda at: at + rng.uniform(0, 60))
    order = [order[at] for at in places]
    left = [iter(story) for story in stories]
    return [Intent(at, *next(left[number])) for at, number in enumerate(order)]


def _story(rng: random.Random, response_id: str, padding: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield the records of one response, in order."""
    answer = _answer(rng, response_id, padding)
    events = list(_events(rng, answer))
    chance = rng.random()
    at = 0 if chance < 0.6 else rng.randint(0, len(events)) if chance < 0.9 else None
    for place, (key, value) in enumerate([*events, (b"", b"")]):
        if place == at:
            yield from _responses(rng, answer)
        if place < len(events):
            yield FEEDBACK_EVENTS.name, key, value


def _answer(rng: random.Random, response_id: str, padding: int) -> ChatResponse:
    failed = rng.random() < 0.05
    texts = (
        () if failed else [f"Answer {n} of {response_id} {rng.randbytes(padding // 2).hex()}" for n in (0, 1)]
    )
    return ChatResponse(
        line=rng.choice(LINES),
        response_id=response_id,
        version=f"own-model-{rng.randint(1, 2)}",
        messages=(Turn(role="user", content=f"What is {response_id}?"),),
        choices=tuple(Choice(index=n, text=text) for n, text in enumerate(texts)),
        status="failed" if failed else "completed",
        user_id=rng.choice(USERS),
        created_at=datetime.now(UTC),
    )


def _responses(rng: random.Random, answer: ChatResponse) -> Iterator[tuple[str, bytes, bytes]]:
    key, topic = answer.response_id.encode(), CHAT_RESPONSES.name
    yield topic, key, answer.to_json()
    if rng.random() < 0.1:  # sent again
        yield topic, key, answer.model_copy(update={"latency_ms": 7.0}).to_json()
    if rng.random() < 0.05:  # another response under this id
        yield topic, key, answer.model_copy(update={"choices": (Choice(index=0, text="Another."),)}).to_json()
    if rng.random() < 0.05:
        yield topic, key, rng.choice(GARBAGE)


def _events(rng: random.Random, answer: ChatResponse) -> Iterator[tuple[bytes, bytes]]:
    """Yield the feedback of users, in order, with the faults that networks and clients add."""
    events: list[Feedback] = []
    key = answer.response_id.encode()
    for number in range(rng.choice((0, 1, 2, 3, 4, 5, 8))):
        event = _event(rng, answer, f"e{number}", events)
        events.append(event)
        yield key, event.to_json()
        chance = rng.random()
        if chance < 0.12:  # repeated, with or without another delivery time
            again = rng.choice(events)
            yield key, again.model_copy(update={"received_at": datetime.now(UTC)}).to_json()
        elif chance < 0.14:  # other content under the same id
            yield key, event.model_copy(update={"tags": ("changed",)}).to_json()
        elif chance < 0.16:
            yield key, rng.choice(GARBAGE)
        elif chance < 0.18:
            yield b"another-key", event.model_copy(update={"event_id": f"w{number}"}).to_json()


def _event(rng: random.Random, answer: ChatResponse, event_id: str, events: list[Feedback]) -> Feedback:
    kind = rng.choice(("correction", "correction", "thumbs", "rating", "comment", "preference", "retract"))
    user = rng.choice(USERS[:3])
    value: Any = {
        "correction": f"It is {rng.randrange(1000)}.",
        "thumbs": rng.choice(("up", "down")),
        "rating": rng.randint(1, 5),
        "comment": rng.choice((VAGUE, USEFUL)),
        "preference": rng.choice(({"over": 1}, {"under": "Something else."})),
        "retract": f"e{rng.randrange(12)}",  # an event that came before, comes later, or never
    }[kind]
    if kind == "retract" and events and rng.random() < 0.7:
        target = rng.choice(events)
        value, user = target.event_id, target.user_id
    if kind == "retract" and value == event_id:
        value = "never-sent"
    at = datetime.now(UTC) + timedelta(seconds=rng.randint(-600, 30))
    return FEEDBACK.validate_python(
        {
            "line": answer.line,
            "response_id": answer.response_id,
            "event_id": event_id,
            "choice": rng.choice((0, 0, 0, 1, 3)) if kind == "thumbs" else 0,  # no response has a choice 3
            "user_id": user,
            "kind": kind,
            "value": value,
            "occurred_at": rng.choice((at, None)),
            "received_at": datetime.now(UTC),
        }
    )


class LoadGenerator:
    """Sends intents and remembers their acknowledgements, from one thread. Waits for a broker that is down."""

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
        """Send intents without waiting, and return how many. They are numbered across all calls."""
        count = 0
        for unnumbered in intents:
            intent = replace(unnumbered, number=len(self._intents))
            self._intents.append(intent)
            self._producer.produce(
                self._prefix + intent.topic,
                intent.value,
                intent.key,
                headers={INTENT_HEADER: str(intent.number)},
                timestamp=intent.at_ms,
                on_delivery=self._on_delivery(intent.number),
            )
            self._producer.poll(0)
            count += 1
        return count

    def flush(self) -> None:
        """Wait until all are acknowledged or have failed."""
        assert self._producer.flush(60) == 0

    def sent(self) -> list[Sent]:
        """Return all intents sent so far."""
        return [Sent(intent, *self._acknowledged.get(intent.number, (-1, -1))) for intent in self._intents]

    def _on_delivery(self, number: int) -> Any:
        def delivered(error: KafkaError | None, message: Message) -> None:
            partition, offset = message.partition(), message.offset()
            if error is None and partition is not None and offset is not None:
                self._acknowledged[number] = (partition, offset)

        return delivered
