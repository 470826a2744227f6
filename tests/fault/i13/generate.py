"""Generates histories: a story of honest users, with records of hostile users and foreign producers strewn into it.

To try a new kind of attack, add a function to `ATTACKS`. What a record may be made of is in `values`, `requests` (what
our APIs accept) and `foreign` (what anyone may write to the topics).

A hostile record never names an honest user as its author, nor as the subject of an erasure, and is never appended at
a later time than the next honest record, because the broker's clock is everybody's. See also `history.fair`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from services.processor.core.batches import BatchLimits
from services.processor.core.state import JUMP_MS
from shared.events import EARLIEST_MS, MAX_CHOICES, from_ms, rfc3339
from shared.records import Output
from shared.topics import CHAT_RESPONSES, DAY_MS, ERASURE_REQUESTS, FEEDBACK_EVENTS
from tests.fault.i13 import floods, foreign, requests, stored, values
from tests.fault.i13.history import (
    ROOT,
    T0,
    Appended,
    History,
    HostClock,
    Idle,
    Replay,
    Step,
    Stored,
    fair,
)

MINUTE_MS, YEAR_MS = 60_000, 366 * DAY_MS
JUMPS_MS = (MINUTE_MS, 7 * MINUTE_MS, DAY_MS, 31 * DAY_MS, YEAR_MS)
"""How far clocks jump, forwards and backwards."""
GAPS_MS = (1, 5, 40, 200, 900, 3_000, 11_000, 31_000, 10 * MINUTE_MS)
LONG_GAPS_MS = (DAY_MS, 29 * DAY_MS, 30 * DAY_MS, 31 * DAY_MS, 61 * DAY_MS)
HONEST_USERS = ("ann", "bob", "cyd")
FOREIGN_NAMES = {"ann": "y/z", "bob": "y|z", "cyd": "z"}
"""Names that an app which writes the topics itself may choose."""
LIMITS = (BatchLimits(examples=1), BatchLimits(examples=1), BatchLimits(examples=3), BatchLimits())


@dataclass
class World:
    """What a history has produced so far, for the attacks to choose their targets from."""

    rng: random.Random
    now_ms: int = T0
    """The time that the next record will get as its append time, if the broker's clock is right."""
    responses: list[str] = field(default_factory=list)
    """The ids of honest responses, arrived or not."""
    arrived: dict[str, Output] = field(default_factory=dict)
    """The honest responses in the log."""
    events: dict[str, list[str]] = field(default_factory=dict)
    """response_id -> the honest events on it in the log."""
    future_events: dict[str, list[str]] = field(default_factory=dict)
    """response_id -> the honest events on it that are still to come."""
    own_responses: list[str] = field(default_factory=list)
    """The ids of responses that hostile users may record."""
    own_events: list[str] = field(default_factory=list)
    sent: list[Output] = field(default_factory=list)
    """Hostile records so far, to be sent again."""

    def any_response(self) -> str:
        """Return a response id of any kind: an honest one, an own one, or a new one."""
        chance = self.rng.random()
        if chance < 0.55 and self.responses:
            return self.rng.choice(self.responses)
        return self.rng.choice(self.own_responses) if chance < 0.9 else values.an_id(self.rng)

    def user(self) -> str:
        """Return a hostile user."""
        return self.rng.choice(("mallory", "mallory", "trudy", "\U0001f608" * 256))


Attack = Callable[[World], Iterator[Output | Step | None]]
"""Yields the records of one attack, in order. None stands for a request that an API refused."""


# --- attacks ------------------------------------------------------------------------------------------------------


def send_feedback(world: World) -> Iterator[Output | None]:
    """Send feedback of any kind through the API, on any response."""
    for _ in range(world.rng.randint(1, 4)):
        response_id = world.any_response()
        known = [*world.events.get(response_id, ()), *world.own_events[-8:]]
        body = requests.a_feedback_body(
            world.rng, world.now_ms, response_id=response_id, user=world.user(), event_ids=known
        )
        world.own_events.append(body["event_id"])
        yield requests.feedback(body, world.now_ms)


def record_responses(world: World) -> Iterator[Output | None]:
    """Record own responses, the same ones again with other content, and honest ones again."""
    rng = world.rng
    for _ in range(rng.randint(1, 3)):
        response_id = rng.choice([*world.own_responses, *world.arrived, values.an_id(rng)])
        user = rng.choice((None, world.user()))
        if rng.random() < 0.7:
            body = requests.a_response_body(rng, world.now_ms, response_id=response_id, user=user)
            yield requests.response(body, world.now_ms)
        else:
            yield requests.chat(requests.a_chat_body(rng, user), world.now_ms, response_id, rng)


def retract(world: World) -> Iterator[Output | None]:
    """Retract others' events before and after they come, own ones, unknown ones, retractions, and itself."""
    rng = world.rng
    for _ in range(rng.randint(1, 6)):
        response_id = world.any_response()
        event_id = values.an_id(rng)
        targets = [
            *world.events.get(response_id, ()), *world.future_events.get(response_id, ()),
            *world.own_events[-8:], event_id, values.an_id(rng),
        ]  # fmt: skip
        body: dict[str, Any] = {
            "response_id": response_id, "event_id": event_id, "user_id": world.user(), "kind": "retract",
            "value": rng.choice(targets),
        }  # fmt: skip
        if (at := values.a_time(rng, world.now_ms)) is not None:
            body["occurred_at"] = at
        world.own_events.append(event_id)
        yield requests.feedback(body, world.now_ms)


def erase(world: World) -> Iterator[Output | None]:
    """Erase hostile users through the API, repeatedly."""
    for _ in range(world.rng.randint(1, 3)):
        yield requests.erasure(requests.an_erasure_body(world.rng, world.user()), world.now_ms)


def write_foreign_records(world: World) -> Iterator[Output | None]:
    """Write records of every topic with anything wrong in them, as a producer outside of Loopwright may."""
    rng = world.rng
    source = rng.choice((send_feedback, send_feedback, record_responses, retract, erase))
    for record in source(world):
        if isinstance(record, Output):
            rename = source is not erase and rng.random() < 0.2
            name = rng.choice(list(FOREIGN_NAMES.values())) + "/0"
            yield foreign.altered(rng, _renamed(record, name) if rename else record)


def write_garbage(world: World) -> Iterator[Output]:
    """Write bytes that are no records."""
    for _ in range(world.rng.randint(1, 4)):
        topic = world.rng.choice((FEEDBACK_EVENTS.name, CHAT_RESPONSES.name, ERASURE_REQUESTS.name))
        yield foreign.garbage(world.rng, topic, world.any_response().encode())


def repeat(world: World) -> Iterator[Output]:
    """Send hostile records again, unchanged."""
    for _ in range(min(len(world.sent), world.rng.randint(1, 4))):
        yield world.rng.choice(world.sent)


def talk_on_one_response(world: World) -> Iterator[Output | None]:
    """Send many corrections, comments and edits of one user on one response, some of them long."""
    rng = world.rng
    response_id, user = world.any_response(), world.user()
    long = rng.random() < 0.3
    for number in range(rng.choice((10, 20, 40))):
        kind = rng.choice(("correction", "comment", "thumbs", "retract"))
        event_id = f"talk{number}-{rng.randrange(10**6)}"
        text = f"{number} " + ("x" * 30_000 if long else "bad")
        value = {"thumbs": "up", "retract": event_id}.get(kind, text)
        body = {
            "response_id": response_id,
            "event_id": event_id,
            "user_id": user,
            "kind": kind,
            "value": value,
        }
        yield requests.feedback(body | {"choice": rng.randrange(8)}, world.now_ms)


def flood(world: World) -> Iterator[Output]:
    """Write hundreds of small records of one kind: what limits and bounds are for."""
    rng = world.rng
    name, make = rng.choice(floods.FLOODS)
    yield from make(rng, world.any_response(), world.now_ms, f"{name}{rng.randrange(10**6)}-")


def break_the_host_clock(world: World) -> Iterator[Step]:
    """Set the host's clock wrong by minutes, a day, a month, or a year."""
    yield HostClock(world.rng.choice(JUMPS_MS) * world.rng.choice((-1, 1)))


def replay(world: World) -> Iterator[Step]:
    """Let an operator replay the dead letters."""
    yield Replay(world.now_ms, world.now_ms)


def poison_the_state(world: World) -> Iterator[Output | Step | None]:
    """Let the state hold what an earlier release stored of a hostile response, often one with new feedback."""
    rng, response_id = world.rng, world.rng.choice(world.own_responses)
    if rng.random() < 0.7:
        body = requests.a_response_body(rng, world.now_ms, response_id=response_id, user=None)
        yield requests.response(body | {"status": "completed"}, world.now_ms)
        for kind, value in (("correction", "It is 1889."), ("thumbs", "up")):
            event = {"response_id": response_id, "event_id": values.an_id(rng), "user_id": world.user()}
            yield requests.feedback(event | {"kind": kind, "value": value}, world.now_ms)
    yield Stored(response_id, *rng.choice(stored.CHANGES))


ATTACKS: tuple[tuple[Attack, float], ...] = (
    (send_feedback, 5),
    (record_responses, 3),
    (retract, 3),
    (erase, 1.5),
    (write_foreign_records, 5),
    (write_garbage, 2),
    (repeat, 1),
    (talk_on_one_response, 0.3),
    (flood, 0.1),
    (break_the_host_clock, 1),
    (replay, 0.5),
    (poison_the_state, 0.7),
)
"""The attacks, and how often each is tried compared with the others."""


# --- the honest story ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Intent:
    """One record of the honest story, before it has a time."""

    make: Callable[[int], Output]
    response_id: str
    event_id: str = ""
    """Empty for the response itself."""


def honest_story(rng: random.Random) -> list[Intent]:
    """Return the records of honest users on one to three responses, in order."""
    story: list[tuple[float, Intent]] = []
    writes_topics = rng.random() < 0.2
    for number in range(rng.randint(1, 3)):
        response_id = f"{ROOT}-r{number}"
        intents = _events_on(rng, response_id, writes_topics)
        if rng.random() < 0.85:
            at = 0 if rng.random() < 0.6 else rng.randint(0, len(intents))
            intents.insert(at, _response(rng, response_id, writes_topics))
        places = sorted(rng.uniform(0, 10) for _ in intents)
        story += zip(places, intents, strict=True)
    return [intent for _, intent in sorted(story, key=lambda pair: pair[0])]


def _response(rng: random.Random, response_id: str, writes_topics: bool) -> Intent:
    body: dict[str, Any] = {
        "response_id": response_id,
        "version": rng.choice(("own", "x", "x/y", "x|y") if writes_topics else ("own",)),
        "messages": [{"role": "user", "content": "When was it built?"}],
        "choices": [{"index": n, "text": f"Answer {n}."} for n in range(rng.choice((1, 1, 2)))],
        "status": rng.choice(("completed",) * 9 + ("failed",)),
    }
    if rng.random() < 0.7:
        body["user_id"] = rng.choice(HONEST_USERS)

    def make(now_ms: int) -> Output:
        return _honest(requests.response(body, now_ms, response_id), body, writes_topics)

    return Intent(make, response_id)


def _events_on(rng: random.Random, response_id: str, writes_topics: bool) -> list[Intent]:
    intents: list[Intent] = []
    sent: list[tuple[str, str]] = []
    for number in range(rng.randint(1, 5)):
        event_id = f"{ROOT}-{response_id[-1]}-e{number}"
        kind, user = rng.choice(requests.KINDS), rng.choice(HONEST_USERS)
        target = f"{ROOT}-{response_id[-1]}-e{rng.randrange(6)}"
        if kind == "retract" and sent and rng.random() < 0.8:
            target, user = rng.choice(sent)
        body: dict[str, Any] = {
            "response_id": response_id,
            "event_id": event_id,
            "user_id": user,
            "kind": kind,
            "value": _honest_value(rng, kind, target, event_id),
            "choice": rng.choice((0, 0, 0, 1)),
        }
        lag_s = rng.choice((None, None, 0, 60, 86_400))
        intent = _event(body, lag_s, writes_topics)
        intents.append(intent)
        if rng.random() < 0.1:
            intents.append(intent)  # sent again
        sent.append((event_id, user))
    return intents


def _event(body: dict[str, Any], lag_s: int | None, writes_topics: bool) -> Intent:
    response_id, event_id = body["response_id"], body["event_id"]

    def make(now_ms: int) -> Output:
        timed = dict(body)
        if lag_s is not None:
            timed["occurred_at"] = rfc3339(from_ms(max(now_ms - lag_s * 1000, EARLIEST_MS)))
        record = requests.feedback(timed, now_ms, f"{response_id}/{event_id}")
        return _honest(record, body, writes_topics)

    return Intent(make, response_id, event_id)


def _honest_value(rng: random.Random, kind: str, target: str, event_id: str) -> Any:
    return {
        "thumbs": rng.choice(("up", "down")),
        "rating": rng.randint(1, 5),
        "correction": f"It was 18{rng.randrange(10, 99)}.",
        "comment": rng.choice(("bad", "Name the year in which it was founded, please")),
        "preference": {"over": rng.choice((MAX_CHOICES - 1, "Something else."))},
        "retract": target if target != event_id else "never-sent",
    }[kind]


def _honest(record: Output | None, body: dict[str, Any], writes_topics: bool) -> Output:
    assert record is not None, f"an API refuses an honest body: {body}"
    name = FOREIGN_NAMES.get(body.get("user_id", "")) if writes_topics else None
    return record if name is None else _renamed(record, name)


def _renamed(record: Output, user_id: str) -> Output:
    """Return a record with another user id, as an app writes it that uses the topics directly."""
    value = json.loads(record.value or b"{}")
    value["user_id"] = user_id
    return replace(record, value=json.dumps(value).encode())


# --- histories ----------------------------------------------------------------------------------------------------


class Timeline:
    """Gives steps their times: true time goes on, and the broker's clock jumps now and then."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.real_ms = T0
        self.offset_ms = 0
        """How far the broker's clock is ahead."""
        self._gaps = GAPS_MS if rng.random() < 0.6 else GAPS_MS + LONG_GAPS_MS
        self._jumps = rng.random() < 0.15

    def next_honest(self) -> tuple[int, int]:
        """Return (append time, true time) of the next honest record."""
        if self._jumps and self._rng.random() < 0.3:
            self.offset_ms = self._rng.choice((0, *JUMPS_MS)) * self._rng.choice((-1, 1))
        gap = self._rng.choice(self._gaps)
        return self.real_ms + gap + self.offset_ms, self.real_ms + gap


def generate(seed: int, only: tuple[Attack, ...] = ()) -> History:
    """Return the history of a seed: an honest story, with attacks before, between and after its records.

    `only` are the attacks to choose from; all, if it is empty.
    """
    rng = random.Random(seed)
    world = World(rng, own_responses=[f"own-{rng.randrange(10**6)}", "o" * 128, "a/b", "honest"])
    story = honest_story(rng)
    world.responses = sorted({intent.response_id for intent in story})
    for intent in story:
        world.future_events.setdefault(intent.response_id, []).append(intent.event_id)
    weighted = [(attack, weight) for attack, weight in ATTACKS if not only or attack in only]
    attacks = rng.choices(*zip(*weighted, strict=True), k=rng.randint(2, 9))
    favourites = attacks[: rng.randint(1, 3)]  # so that a history often tries one thing in several states
    places = [rng.randint(0, len(story)) for _ in attacks]
    timeline, steps = Timeline(rng), list[Step]()
    for number in range(len(story) + 1):
        at_ms, real_ms = timeline.next_honest()
        here = [
            rng.choice((attack, rng.choice(favourites)))
            for attack, place in zip(attacks, places, strict=True)
            if place == number
        ]
        steps += _attack_steps(world, here, timeline, at_ms, real_ms)
        if rng.random() < 0.3:
            steps.append(Idle(real_ms, rng.choice((1, 2, 5))))
        timeline.real_ms = real_ms
        if number < len(story):
            steps += _heartbeats(f"{seed}-{number}", steps, at_ms, real_ms)
            steps.append(_honest_step(world, story[number], at_ms, real_ms))
    return History(seed, rng.choice(LIMITS), tuple(fair(steps)))


def _attack_steps(
    world: World, attacks: list[Attack], timeline: Timeline, until_ms: int, until_real_ms: int
) -> Iterator[Step]:
    """Yield the steps of some attacks, between the last honest record and the next one, at `until_ms`."""
    start_ms = until_ms - (until_real_ms - timeline.real_ms)
    found: list[tuple[str, Output | Step]] = []
    for attack in attacks:
        world.now_ms = start_ms
        found += [(attack.__name__, step) for step in attack(world) if step is not None]
    for number, (name, step) in enumerate(found, 1):
        # All of them come in the first tenth of the time, or are spread over all of it.
        share = number / (len(found) + 1) / (1 if timeline.real_ms % 2 else 10)
        passed = round((until_real_ms - timeline.real_ms) * share)
        if isinstance(step, Output):
            world.sent.append(step)
            yield Appended(
                start_ms + passed,
                timeline.real_ms + passed,
                step.topic,
                step.key,
                step.value,
                step.headers,
                note=name,
            )
        elif isinstance(step, Replay):
            yield Replay(start_ms + passed, timeline.real_ms + passed)
        else:
            yield step


def _heartbeats(name: str, before: list[Step], at_ms: int, real_ms: int) -> Iterator[Step]:
    """Yield other users' traffic before an honest record that comes after a silence.

    After a silence, stream time follows only once records span some time. Without traffic, the hostile records alone
    would decide when that is, and a partition cannot tell a silence from a broker's clock that jumped.
    """
    honest = [step.at_ms for step in before if isinstance(step, Appended) and step.honest]
    if honest and at_ms <= honest[-1] + JUMP_MS:
        return
    for number, ago_ms in enumerate((2 * JUMP_MS, JUMP_MS)):
        body = {
            "response_id": f"heartbeat-{name}-{number}",
            "version": "own",
            "messages": [{"role": "user", "content": "?"}],
            "choices": [{"index": 0, "text": "!"}],
        }
        record = requests.response(body, at_ms, name)
        assert record is not None
        yield Appended(
            at_ms - ago_ms, real_ms, record.topic, record.key, record.value, record.headers, True, "heartbeat"
        )


def _honest_step(world: World, intent: Intent, at_ms: int, real_ms: int) -> Appended:
    record = intent.make(at_ms)
    if intent.event_id:
        world.events.setdefault(intent.response_id, []).append(intent.event_id)
    else:
        world.arrived[intent.response_id] = record
    return Appended(at_ms, real_ms, record.topic, record.key, record.value, record.headers, True, "story")
