"""I1-I4 when time misbehaves: clocks that jump, records appended with times that go back, and weeks read in seconds."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shared.events import FEEDBACK, ChatResponse, Choice, Message, Outcome, OutcomeKind, from_ms, to_ms
from shared.topics import CHAT_RESPONSES, DAY_MS, FEEDBACK_EVENTS, FEEDBACK_OUTCOMES, WINDOW_DAYS
from tests.fault.broken_engines import ONE_TOPIC_AHEAD
from tests.fault.oracle import INPUTS, Seen, names
from tests.fault.processor_rig import ProcessorRig, Processors, processors
from tests.fault.workload import Intent, history

HOUR_MS = 3_600_000
WINDOW_MS = WINDOW_DAYS * DAY_MS
WEEKS_AGO_MS = 75 * DAY_MS
RESPONSES, EVERY_MS = 60, 17 * HOUR_MS


@pytest.fixture
def dated(kafka: str, fresh: str, tmp_path: Path, record_property: Any) -> Iterator[Processors]:
    """Over topics whose writers say when they wrote."""
    with processors(
        ProcessorRig(kafka, fresh).create(create_time=True), tmp_path, record_property
    ) as started:
        yield started


def test_a_clock_that_jumps_a_day_to_and_fro_changes_nothing(rare_seed: int, workers: Processors) -> None:
    dice = random.Random(rare_seed)
    for n in range(2):
        workers.load.send(history(rare_seed * 2 + n, 25, name=f"part{n}"))
        workers.load.settled()
        if n == 0:
            kill = [dice.choice(("after_produce", "after_commit")), 3]
            workers.killed(clock="jumping", age_ms=200, kill=kill, slice_records=20)
    workers.finish(clock="jumping", age_ms=200)
    assert workers.complaints() == []


def test_records_whose_append_times_go_back_are_all_processed(rare_seed: int, dated: Processors) -> None:
    """By up to a day, as after a change of the topic's leader to a broker whose clock is behind."""
    dice = random.Random(rare_seed)
    for n in range(2):
        now = time.time_ns() // 1_000_000
        part = history(rare_seed * 2 + n, 25, name=f"part{n}")
        dated.load.send([replace(intent, at_ms=now - dice.randrange(DAY_MS)) for intent in part])
        dated.load.settled()
        if n == 0:
            dated.killed(age_ms=200, kill=["after_commit", 2], slice_records=20)
    dated.finish(age_ms=200)
    assert dated.complaints() == []


# --- weeks, one topic fully ahead of the other --------------------------------------------------------------------


def weeks(begin_ms: int) -> tuple[list[Intent], list[Intent], dict[tuple[str, str], str]]:
    """Responses, feedback, both by time, and what is to become of each event.

    A response every seventeen hours. To each something is said an hour before it comes, an hour before its window
    closes, and an hour after; and something to a response that never comes.
    """
    responses, feedback = [], []
    fates: dict[tuple[str, str], str] = {}
    for n in range(RESPONSES):
        at, name = begin_ms + n * EVERY_MS, f"r{n}"
        responses.append(_response(name, at))
        last = at + WINDOW_MS
        for target, event_id, when, fate in (
            (name, "before", at - HOUR_MS, "batched"),
            (name, "in-time", last - HOUR_MS, "batched"),
            (name, "too-late", last + HOUR_MS, "late"),
            (f"no-{name}", "alone", at, "unmatched"),
        ):
            feedback.append(_correction(target, event_id, when))
            fates[target, event_id] = fate
    # And a record at the end of each partition, by which its last windows close.
    responses += [_response(f"end{n}", begin_ms + WEEKS_AGO_MS - HOUR_MS) for n in range(12)]
    return responses, sorted(feedback, key=lambda intent: intent.at_ms), fates


def _response(name: str, at_ms: int) -> Intent:
    response = ChatResponse(
        line="assistant",
        response_id=name,
        version="own-model-1",
        messages=(Message(role="user", content=f"What is {name}?"),),
        choices=(Choice(index=0, text="I do not know."),),
        created_at=from_ms(at_ms),
    )
    return Intent(0, CHAT_RESPONSES.name, name.encode(), response.to_json(), at_ms)


def _correction(target: str, event_id: str, at_ms: int) -> Intent:
    event = FEEDBACK.validate_python(
        {
            "line": "assistant",
            "response_id": target,
            "event_id": event_id,
            "user_id": f"u_{event_id}",
            "kind": "correction",
            "value": f"It is {target}.",
            "received_at": datetime.now(UTC),
        }
    )
    return Intent(0, FEEDBACK_EVENTS.name, target.encode(), event.to_json(), at_ms)


def replayed(workers: Processors, seed: int, **told: Any) -> dict[tuple[str, str], str]:
    """One topic is written to its end, then the other; then they are read, with a kill in the middle."""
    responses, feedback, fates = weeks(time.time_ns() // 1_000_000 - WEEKS_AGO_MS)
    for part in (responses, feedback):
        workers.load.send(part)
        workers.load.settled()
    phase = random.Random(seed).choice(("before_transaction", "after_produce", "after_commit"))
    workers.killed(kill=[phase, 4], slice_records=20, **told)
    workers.finish(**told)
    return fates


def test_weeks_of_history_close_their_windows_at_the_right_time(rare_seed: int, dated: Processors) -> None:
    fates = replayed(dated, rare_seed)
    assert dated.complaints() == []
    seen = dated.rig.seen()
    outcomes = [
        (record.partition, Outcome.from_json(record.value)) for record in seen.of(FEEDBACK_OUTCOMES.name)
    ]
    assert {(o.response_id, o.event_id): str(o.outcome) for _, o in outcomes} == fates
    for partition, outcome in outcomes:
        if outcome.outcome is OutcomeKind.UNMATCHED:
            assert to_ms(outcome.decided_at) == closing(seen, partition, outcome.response_id)
    # Time only grows in a partition: neither topic was read ahead of the other.
    times: dict[int, list[int]] = defaultdict(list)
    for partition, outcome in outcomes:
        times[partition].append(to_ms(outcome.decided_at))
    assert all(found == sorted(found) for found in times.values())


def closing(seen: Seen, partition: int, response_id: str) -> int:
    """When the window of a response that never came closes: with the first record of its partition after its end."""
    records = [r for topic in INPUTS for r in seen.of(topic) if r.partition == partition]
    end = WINDOW_MS + min(record.timestamp for record in records if record.key == response_id.encode())
    return min(record.timestamp for record in records if record.timestamp >= end)


def test_a_processor_that_reads_one_topic_ahead_is_caught(dated: Processors, record_property: Any) -> None:
    """The negative control of it."""
    replayed(dated, 0, variant=ONE_TOPIC_AHEAD)
    assert "I3" in names(dated.caught())
    record_property("caught", 1)
