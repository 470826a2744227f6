"""The oracle's own proof: processors that are broken on purpose, killed like the others, are caught, each by name."""

from __future__ import annotations

from typing import Any

import pytest

from shared.topics import FEEDBACK_EVENTS
from tests.fault.broken_engines import VARIANTS
from tests.fault.oracle import names
from tests.fault.processor_rig import Processors
from tests.fault.workload import history

CAUGHT = {
    "ack before commit": ("after_produce", {"I1 lost"}),
    "positions outside the transaction": ("after_commit", {"I1 twice"}),
    "store before commit": ("after_produce", {"I1 lost", "I1 twice"}),
    "dedup key before the write": ("after_produce", {"I3", "I4 tallies"}),
    "changelog outside the transaction": ("after_produce", {"I1 lost", "I1 twice"}),
}
"""In which phase it is killed, and the complaints of which at least one must come."""


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_broken_processor_is_caught(
    variant: str, rare_seed: int, workers: Processors, record_property: Any
) -> None:
    phase, expected = CAUGHT[variant]
    told = history(rare_seed, 60)
    # Feedback first, so that whatever slice it is killed in holds some: a response sent twice is no harm.
    workers.load.send(intent for intent in told if intent.topic == FEEDBACK_EVENTS.name)
    workers.load.settled()
    workers.killed(variant=variant, kill=[phase, 3], least=10, slice_records=20)
    workers.load.send(intent for intent in told if intent.topic != FEEDBACK_EVENTS.name)
    workers.load.settled()
    workers.finish(variant=variant, slice_records=20)
    found = workers.caught()
    assert names(found) & expected, found
    record_property("caught", 1)
