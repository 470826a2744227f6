"""Negative controls of I1-I4: the oracle catches processors that are broken on purpose and killed like the others."""

from __future__ import annotations

from typing import Any

import pytest

from shared.topics import FEEDBACK_EVENTS
from tests.fault.broken_engines import VARIANTS
from tests.fault.oracle import violation_names
from tests.fault.processor_rig import ProcessorGroup
from tests.fault.workload import history

EXPECTED = {
    "ack before commit": ("after_produce", {"I1 lost"}),
    "positions outside the transaction": ("after_commit", {"I1 twice"}),
    "store before commit": ("after_produce", {"I1 lost", "I1 twice"}),
    "dedup key before the write": ("after_produce", {"I3", "I4 tallies"}),
    "changelog outside the transaction": ("after_produce", {"I1 lost", "I1 twice"}),
}
"""variant -> the phase in which it is killed, and the violations of which at least one must be found."""


@pytest.mark.few_partitions  # all of them get records after the kill, so even a broken processor comes to the end
@pytest.mark.parametrize("variant", VARIANTS)
def test_oracle_catches_a_broken_processor(
    variant: str, rare_seed: int, workers: ProcessorGroup, record_property: Any
) -> None:
    phase, expected = EXPECTED[variant]
    intents = history(rare_seed, 60)
    # Feedback first, so that every slice has some: a response that is processed twice does no harm.
    workers.load.send(intent for intent in intents if intent.topic == FEEDBACK_EVENTS.name)
    workers.load.flush()
    workers.run_until_killed(variant=variant, kill=[phase, 3], min_records=10, slice_records=20)
    workers.load.send(intent for intent in intents if intent.topic != FEEDBACK_EVENTS.name)
    workers.load.flush()
    workers.run_to_end(variant=variant, slice_records=20)
    found = workers.expected_violations()
    assert violation_names(found) & expected, found
    record_property("caught", 1)
