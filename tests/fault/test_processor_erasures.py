"""I11 when a processor is killed during an erasure: nothing of the user is left, and nothing of others is missing."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Producer

from shared.cloudevents import cloudevent
from shared.events import ErasureReport, ErasureRequest
from shared.topics import ERASURE_REPORTS, ERASURE_REQUESTS
from tests.fault.erasure_oracle import erasure_violations, in_progress
from tests.fault.fault_settings import select_variants
from tests.fault.oracle import violation_names
from tests.fault.processor_rig import ProcessorGroup
from tests.fault.workload import USERS, Intent, history

PHASES = ("after_produce", "during_restore", "before_transaction", "after_commit", "after_store")
NEW = "new"
"""Prefix of the responses that are made after the request."""
CUTS: dict[str, Any] = {"examples": 4, "age_ms": 300, "slice_records": 20}


def request_erasure(workers: ProcessorGroup, subject: str) -> None:
    """Write one copy of the request to each partition, as the feedback service does."""
    rig, now = workers.rig, datetime.now(UTC)
    request = ErasureRequest(
        line="assistant", request_id=f"erase-{subject}", subject=subject, requested_at=now,
        deadline=now + timedelta(days=30),
    )  # fmt: skip
    producer = Producer({"bootstrap.servers": rig.kafka})
    for partition in range(rig.partitions):
        copy = cloudevent(
            ERASURE_REQUESTS, subject, request, source="feedback", ce_id=f"{subject}/{partition}", at=now
        )
        producer.produce(rig.prefix + copy.topic, copy.value, copy.key, partition, headers=list(copy.headers))
    assert producer.flush(20) == 0


def send(workers: ProcessorGroup, part: Sequence[Intent]) -> None:
    workers.load.send(part)
    workers.load.flush()


def violations_after_kills(workers: ProcessorGroup, seed: int, phase: str, **options: Any) -> list[str]:
    """Kill the processor during an erasure, and again while late records arrive, then run it to the end."""
    rng = random.Random(f"{phase}{seed}")
    subject = rng.choice(USERS)
    before, late = history(seed * 10, 24, name="before"), history(seed * 10 + 1, 12, name="late")
    send(workers, before)
    workers.run_to_end(**CUTS, **options)
    request_erasure(workers, subject)
    # There is one restore per start. The other phases come at least twice: with the state scan and with the reread.
    times = (1, 1) if phase == "during_restore" else (rng.randint(1, 2), rng.randint(1, 2))
    workers.run_until_killed(kill=[phase, times[0]], min_records=0, **CUTS, **options)
    send(workers, late)
    workers.run_until_killed(kill=[phase, times[1]], min_records=0, **CUTS, **options)
    send(workers, history(seed * 10 + 2, 8, name=NEW))
    last = workers.start(**CUTS, **options)
    workers.until_consumed(60, last)

    def reported() -> bool:
        log = workers.rig.read_log()
        reports = [ErasureReport.from_json(record.value) for record in log.topic(ERASURE_REPORTS.name)]
        count = sum(report.kind == "erasure" for report in reports)
        return count >= workers.rig.partitions and not in_progress(log)

    if options:  # a broken processor, which may never report
        threading.Event().wait(4.0)
    else:
        workers.until(reported, "each partition has reported, and no erasure is in progress", 60)
    workers.stop(last)
    return erasure_violations(workers.rig.read_log(), subject, NEW)


@pytest.mark.parametrize("phase", select_variants(PHASES))
def test_kill_in_any_phase_leaves_nothing_of_an_erased_user(
    phase: str, rare_seed: int, workers: ProcessorGroup
) -> None:
    assert violations_after_kills(workers, rare_seed, phase) == []


def test_oracle_catches_erased_users_kept_in_memory_only(
    rare_seed: int, workers: ProcessorGroup, record_property: Any
) -> None:
    found = violations_after_kills(workers, rare_seed, "after_commit", variant="erased users in memory")
    assert violation_names(found) & {"I11 batches", "I11 state"}, found
    record_property("caught", 1)
