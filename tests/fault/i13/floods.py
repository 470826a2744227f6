"""Floods: hundreds of valid records of one kind, written straight to the topics because that is fast."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from shared.events import from_ms, rfc3339
from shared.records import Output
from shared.topics import CHAT_RESPONSES, ERASURE_REQUESTS, FEEDBACK_EVENTS

Flood = Callable[[random.Random, str, int, str], Iterator[Output]]
"""From a random generator, a target response, the time in ms, and a unique prefix of ids."""


def _feedback(response_id: str, now_ms: int, event_id: str, user: str, kind: str, value: Any) -> Output:
    at = rfc3339(from_ms(now_ms))
    event = {
        "line": "assistant", "response_id": response_id, "event_id": event_id, "user_id": user, "kind": kind,
        "value": value, "received_at": at,
    }  # fmt: skip
    return Output(FEEDBACK_EVENTS.name, response_id.encode(), json.dumps(event).encode())


def crowd(rng: random.Random, response_id: str, now_ms: int, prefix: str) -> Iterator[Output]:
    """One thumb each of more users than a response keeps signals of."""
    for number in range(300):
        yield _feedback(response_id, now_ms, f"{prefix}{number}", f"{prefix}user{number}", "thumbs", "up")


def vague_comments(rng: random.Random, response_id: str, now_ms: int, prefix: str) -> Iterator[Output]:
    """More comments of one user than a response remembers events of."""
    for number in range(1_100):
        yield _feedback(response_id, now_ms, f"{prefix}{number}", f"{prefix}user", "comment", "bad")


def retractions(rng: random.Random, response_id: str, now_ms: int, prefix: str) -> Iterator[Output]:
    """Retractions by one user of events that nobody knows, on one response."""
    for number in range(rng.choice((100, 1_100))):
        yield _feedback(response_id, now_ms, f"{prefix}{number}", f"{prefix}user", "retract", f"x{number}")


def retractions_everywhere(
    rng: random.Random, response_id: str, now_ms: int, prefix: str
) -> Iterator[Output]:
    """Retractions by one user on responses that nobody knows, some of them twice."""
    for number in range(250):
        target = f"{prefix}{rng.randrange(230)}"
        yield _feedback(target, now_ms, f"{prefix}{number}", f"{prefix}user", "retract", "x")


def long_corrections(rng: random.Random, response_id: str, now_ms: int, prefix: str) -> Iterator[Output]:
    """More text on one response than a batch holds, of one user or of many."""
    many = rng.random() < 0.5
    for number in range(24):
        user = f"{prefix}{number if many else 'user'}"
        kind = rng.choice(("correction", "comment"))
        yield _feedback(response_id, now_ms, f"{prefix}{number}", user, kind, f"{number} is wrong " * 2_000)


def recorded_again(rng: random.Random, response_id: str, now_ms: int, prefix: str) -> Iterator[Output]:
    """One response, and then fifty times the same id with other content."""
    for number in range(50):
        response = {
            "line": "assistant", "response_id": f"{prefix}r", "version": "own", "user_id": f"{prefix}user",
            "messages": [{"role": "user", "content": "?"}], "choices": [{"index": 0, "text": f"{number}"}],
            "created_at": rfc3339(from_ms(now_ms)),
        }  # fmt: skip
        yield Output(CHAT_RESPONSES.name, f"{prefix}r".encode(), json.dumps(response).encode())


def erasures(rng: random.Random, response_id: str, now_ms: int, prefix: str) -> Iterator[Output]:
    """Erasures of many users, and many of one user."""
    for number in range(rng.choice((30, 230))):
        subject = f"{prefix}user{number if rng.random() < 0.7 else ''}"
        request = {
            "line": "assistant", "request_id": f"{prefix}{number}", "subject": subject,
            "requested_at": rfc3339(from_ms(now_ms)), "deadline": rfc3339(from_ms(now_ms)),
        }  # fmt: skip
        yield Output(ERASURE_REQUESTS.name, subject.encode(), json.dumps(request).encode())


def garbage(rng: random.Random, response_id: str, now_ms: int, prefix: str) -> Iterator[Output]:
    """Records that cannot be read, each with a key of its own."""
    for number in range(150):
        yield Output(FEEDBACK_EVENTS.name, f"{prefix}{number}".encode(), b"{" * rng.randint(0, 5))


FLOODS: tuple[tuple[str, Flood], ...] = (
    ("crowd", crowd),
    ("vague", vague_comments),
    ("retract", retractions),
    ("everywhere", retractions_everywhere),
    ("long", long_corrections),
    ("again", recorded_again),
    ("erase", erasures),
    ("garbage", garbage),
)
"""Floods, each with a name. Add new ones here."""
