"""I1-I4 with faulty times: clocks that jump, append times that go back, and weeks of history read in seconds."""

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
from tests.fault.oracle import INPUTS, LogContents, violation_names
from tests.fault.processor_rig import ProcessorGroup, ProcessorRig, processor_group
from tests.fault.workload import Intent, history

HOUR_MS = 3_600_000
WINDOW_MS = WINDOW_DAYS * DAY_MS
WEEKS_AGO_MS = 75 * DAY_MS
RESPONSES, EVERY_MS = 60, 17 * HOUR_MS


@pytest.fixture
def dated(kafka: str, fresh: str, tmp_path: Path, record_property: Any) -> Iterator[ProcessorGroup]:
    """Processes over topics whose writers choose the append times."""
    with processor_group(
        ProcessorRig(kafka, fresh, create_time=True).create(), tmp_path, record_property
    ) as group:
        yield group


def test_clock_that_jumps_by_up_to_a_year_changes_nothing(rare_seed: int, workers: ProcessorGroup) -> None:
    rng = random.Random(rare_seed)
    for n in range(2):
        workers.load.send(history(rare_seed * 2 + n, 25, name=f"part{n}"))
        workers.load.flush()
        if n == 0:
            kill = [rng.choice(("after_produce", "after_commit")), 3]
            workers.run_until_killed(clock="jumping", age_ms=200, kill=kill, slice_records=20)
    workers.run_to_end(clock="jumping", age_ms=200)
    assert workers.violations() == []


@pytest.mark.parametrize("error_days", [-365, -1, 31, 365])
def test_wrong_clock_closes_no_window_and_leaves_nothing_behind(
    error_days: int, workers: ProcessorGroup
) -> None:
    """Feedback that comes after the clock is right again still finds its response."""
    first = history(error_days, 25, name="first")
    second = history(error_days + 1, 25, name="second")
    responses = [intent for intent in second if intent.topic == CHAT_RESPONSES.name]
    feedback = [intent for intent in second if intent.topic != CHAT_RESPONSES.name]
    workers.load.send([*first, *responses])
    workers.load.flush()
    wrong = {"clock_error_ms": error_days * DAY_MS, "age_ms": 200}
    workers.run_until_killed(kill=["after_commit", 3], slice_records=20, **wrong)
    workers.run_to_end(**wrong)
    workers.load.send(feedback)
    workers.load.flush()
    workers.run_to_end(age_ms=200)
    assert workers.violations() == []
    outcomes = [Outcome.from_json(r.value) for r in workers.rig.read_log().topic(FEEDBACK_OUTCOMES.name)]
    assert {outcome.outcome for outcome in outcomes}.isdisjoint({OutcomeKind.LATE, OutcomeKind.UNMATCHED})


def test_records_whose_append_times_go_back_are_processed(rare_seed: int, dated: ProcessorGroup) -> None:
    """They go back by up to a day, as if the topic's new leader had a clock that is behind."""
    rng = random.Random(rare_seed)
    for n in range(2):
        now = time.time_ns() // 1_000_000
        part = history(rare_seed * 2 + n, 25, name=f"part{n}")
        dated.load.send([replace(intent, at_ms=now - rng.randrange(DAY_MS)) for intent in part])
        dated.load.flush()
        if n == 0:
            dated.run_until_killed(age_ms=200, kill=["after_commit", 2], slice_records=20)
    dated.run_to_end(age_ms=200)
    assert dated.violations() == []


# --- weeks of history, one topic written before the other ---------------------------------------------------------


def weeks_of_history(start_ms: int) -> tuple[list[Intent], list[Intent], dict[tuple[str, str], str]]:
    """Return responses and feedback, both ordered by time, and the expected outcome of each event.

    There is a response every seventeen hours. Each gets feedback an hour before it arrives, an hour before its window
    closes, and an hour after; and there is feedback on a response that never arrives.
    """
    responses, feedback = [], []
    expected: dict[tuple[str, str], str] = {}
    for n in range(RESPONSES):
        at, name = start_ms + n * EVERY_MS, f"r{n}"
        responses.append(_response(name, at))
        last = at + WINDOW_MS
        for target, event_id, event_at, outcome in (
            (name, "before", at - HOUR_MS, "batched"),
            (name, "in-time", last - HOUR_MS, "batched"),
            (name, "too-late", last + HOUR_MS, "late"),
            (f"no-{name}", "no-response", at, "unmatched"),
        ):
            feedback.append(_correction(target, event_id, event_at))
            expected[target, event_id] = outcome
    # Records at the end of each partition close its last windows. A jump ahead counts once it has lasted for an hour.
    responses += [_response(f"end{n}", start_ms + WEEKS_AGO_MS - 4 * HOUR_MS) for n in range(12)]
    responses += [_response(f"last{n}", start_ms + WEEKS_AGO_MS - HOUR_MS) for n in range(12)]
    return responses, sorted(feedback, key=lambda intent: intent.at_ms), expected


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


def process_history(workers: ProcessorGroup, seed: int, **options: Any) -> dict[tuple[str, str], str]:
    """Write one topic to its end, then the other, then process both with a kill in between.

    Returns the expected outcomes.
    """
    responses, feedback, expected = weeks_of_history(time.time_ns() // 1_000_000 - WEEKS_AGO_MS)
    for part in (responses, feedback):
        workers.load.send(part)
        workers.load.flush()
    phase = random.Random(seed).choice(("before_transaction", "after_produce", "after_commit"))
    workers.run_until_killed(kill=[phase, 4], slice_records=20, **options)
    workers.run_to_end(**options)
    return expected


def test_weeks_of_history_close_windows_at_the_right_time(rare_seed: int, dated: ProcessorGroup) -> None:
    expected = process_history(dated, rare_seed)
    assert dated.violations() == []
    log = dated.rig.read_log()
    outcomes = [
        (record.partition, Outcome.from_json(record.value)) for record in log.topic(FEEDBACK_OUTCOMES.name)
    ]
    assert {(o.response_id, o.event_id): str(o.outcome) for _, o in outcomes} == expected
    for partition, outcome in outcomes:
        if outcome.outcome is OutcomeKind.UNMATCHED:
            assert to_ms(outcome.decided_at) in closing_ms(log, partition, outcome.response_id)
    # Time only grows within a partition, so no topic was read ahead of the other.
    times: dict[int, list[int]] = defaultdict(list)
    for partition, outcome in outcomes:
        times[partition].append(to_ms(outcome.decided_at))
    assert all(decided == sorted(decided) for decided in times.values())


def closing_ms(log: LogContents, partition: int, response_id: str) -> list[int]:
    """Return when the window of a missing response may close: with the first or second record after its end.

    The first one does not close it if it comes more than an hour after the one before.
    """
    records = [r for topic in INPUTS for r in log.topic(topic) if r.partition == partition]
    end = WINDOW_MS + min(record.timestamp for record in records if record.key == response_id.encode())
    return sorted({record.timestamp for record in records if record.timestamp >= end})[:2]


def test_oracle_catches_a_processor_that_reads_one_topic_ahead(
    dated: ProcessorGroup, record_property: Any
) -> None:
    """The negative control of reading weeks of history."""
    process_history(dated, 0, variant=ONE_TOPIC_AHEAD)
    assert "I3" in violation_names(dated.expected_violations())
    record_property("caught", 1)
