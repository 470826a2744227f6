"""I13: no request that an API accepts, no record on an input topic, and no clock stops a partition or harms others.

Each history is run twice through the real step, slice runner and partition, with and without its hostile records. See
`tests/fault/i13/generate.py` for what is tried, and `oracle.py` for what must hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.fault.fault_settings import SEEDS, select_variants
from tests.fault.i13.generate import generate
from tests.fault.i13.mutations import MUTATIONS, Mutation
from tests.fault.i13.oracle import name_of, violations
from tests.fault.i13.partition_run import silent
from tests.fault.i13.shrink import describe

HISTORIES = 1_050 if SEEDS > 1 else 300
"""Histories per seed: at least 20,000 in `make test-fault`."""
MAX_SEARCHED = 1_000
"""Histories in which a mutation must be caught."""


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    with silent():
        yield


@pytest.mark.timeout(600)
def test_hostile_records_stop_and_change_nothing(seed: int, record_property: Any) -> None:
    for number in range(seed * HISTORIES, (seed + 1) * HISTORIES):
        history = generate(number)
        found = violations(history)
        assert not found, describe(history, found)
    record_property("histories", HISTORIES)


def test_seed_always_gives_the_same_history() -> None:
    assert [str(generate(number)) for number in range(20)] == [str(generate(number)) for number in range(20)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", select_variants(MUTATIONS), ids=lambda mutation: mutation.name)
def test_mistake_is_caught(mutation: Mutation, record_property: Any) -> None:
    """Negative controls: each mistake violates I13 in some history that the processor as it is passes."""
    for number in range(MAX_SEARCHED):
        history = generate(number, mutation.attacks)
        with mutation.applied():
            found = {name_of(each) for each in violations(history)} & mutation.expected
        if found:
            assert violations(history) == []
            record_property("mutations", 1)
            return
    pytest.fail(f"{mutation.name}: not caught in {MAX_SEARCHED} histories")
