"""I11: whatever a killed processor was doing when a user was to be erased, nothing of that user is left, and of others
nothing is missing."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from confluent_kafka import Producer

from shared.cloudevents import sealed
from shared.events import ErasureReport, ErasureRequest
from shared.topics import ERASURE_REPORTS, ERASURE_REQUESTS
from tests.fault.erased_oracle import erasure_complaints, under_way
from tests.fault.fault_settings import varieties
from tests.fault.oracle import names
from tests.fault.processor_rig import Processors
from tests.fault.workload import USERS, Intent, history

PHASES = ("after_produce", "during_restore", "before_transaction", "after_commit", "after_store")
NEW = "new"
CUTS: dict[str, Any] = {"examples": 4, "age_ms": 300, "slice_records": 20}


def ask(workers: Processors, subject: str) -> None:
    """One copy of the request in each partition, as the feedback door writes them."""
    rig, now = workers.rig, datetime.now(UTC)
    request = ErasureRequest(
        line="assistant", request_id=f"erase-{subject}", subject=subject, requested_at=now,
        deadline=now + timedelta(days=30),
    )  # fmt: skip
    producer = Producer({"bootstrap.servers": rig.kafka})
    for partition in range(rig.partitions):
        copy = sealed(
            ERASURE_REQUESTS, subject, request, source="feedback", ce_id=f"{subject}/{partition}", at=now
        )
        producer.produce(rig.prefix + copy.topic, copy.value, copy.key, partition, headers=list(copy.headers))
    assert producer.flush(20) == 0


def sent(workers: Processors, part: Sequence[Intent]) -> None:
    workers.load.send(part)
    workers.load.settled()


def erased(workers: Processors, seed: int, phase: str, **told: Any) -> list[str]:
    """Killed before the request is through, and again with what comes late; then one more life, to the end."""
    dice = random.Random(f"{phase}{seed}")
    subject = dice.choice(USERS)
    before, late = history(seed * 10, 24, name="before"), history(seed * 10 + 1, 12, name="late")
    sent(workers, before)
    workers.finish(**CUTS, **told)
    ask(workers, subject)
    # Of a restore there is one in each life; of the others, some come while the state is walked and batches are read.
    often = (1, 1) if phase == "during_restore" else (dice.randint(1, 4), dice.randint(1, 2))
    workers.killed(kill=[phase, often[0]], least=0, **CUTS, **told)
    sent(workers, late)
    workers.killed(kill=[phase, often[1]], least=0, **CUTS, **told)
    sent(workers, history(seed * 10 + 2, 8, name=NEW))
    last = workers.start(**CUTS, **told)
    workers.until_consumed(60, last)

    def reported() -> bool:
        seen = workers.rig.seen()
        found = [ErasureReport.from_json(one.value) for one in seen.of(ERASURE_REPORTS.name)]
        told = sum(report.kind == "erasure" for report in found)
        return told >= workers.rig.partitions and not under_way(seen)

    if told:  # a broken one, which may never report
        threading.Event().wait(4.0)
    else:
        workers.until(reported, "each partition has reported, and no retraction waits", 60)
    workers.stop(last)
    return erasure_complaints(workers.rig.seen(), subject, NEW)


@pytest.mark.parametrize("phase", varieties(PHASES))
def test_killed_in_this_phase_an_erasure_leaves_nothing_and_costs_others_nothing(
    phase: str, rare_seed: int, workers: Processors
) -> None:
    assert erased(workers, rare_seed, phase) == []


def test_a_fence_kept_in_memory_alone_is_caught(
    rare_seed: int, workers: Processors, record_property: Any
) -> None:
    found = erased(workers, rare_seed, "after_commit", variant="fence in memory")
    assert names(found) & {"I11 batches", "I11 state"}, found
    record_property("caught", 1)
