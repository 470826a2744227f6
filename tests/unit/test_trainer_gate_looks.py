"""Which gate since the last promotion the next one is."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from services.trainer.versions.gate_looks import next_look
from shared.versions import GateReport, ModelVersion, VersionRef, version_name
from tests.trainer_factories import LINE

AT = datetime(2026, 1, 1, tzinfo=UTC)
BASE = version_name(LINE, None, "ab" * 32)


def ref(number: int | None) -> VersionRef:
    digest = f"{number or 0:064x}" if number else "ab" * 32
    return VersionRef(
        version=version_name(LINE, number, digest), kind="lora" if number else "base", digest=digest, uri=""
    )


def version(
    number: int | None,
    gates: int = 1,
    alpha: float | None = 0.025,
    against: int | None = None,
    tests: int | None = None,
) -> ModelVersion:
    report = GateReport(
        verdict="inconclusive",
        gated_against=ref(against).version,
        number=gates,
        earlier_tests=gates - 1 if tests is None else tests,
        alpha=alpha,
    )
    return ModelVersion(
        line=LINE,
        ref=ref(number),
        number=number,
        base=BASE,
        base_model="tiny",
        run_id=f"run-{number}" if number else None,
        gate=report if number else None,
        created_at=AT,
    )


@pytest.mark.parametrize(
    ("versions", "stable", "look"),
    [
        ([], None, 1),
        ([version(1)], None, 2),
        ([version(1), version(2), version(3)], None, 4),
        ([version(1), version(2), version(3)], 2, 2),
        ([version(1), version(2)], 2, 1),
        # Gated again: each gate counts, and those of older versions against the one that serves.
        ([version(1), version(2, gates=3)], 1, 4),
        ([version(1, gates=2, against=2), version(2)], 2, 2),
        ([version(1, gates=2), version(2)], 2, 1),
        # Too little feedback to test anything.
        ([version(1, alpha=None), version(2)], None, 2),
        # Gated again until there was enough: the gates before are no looks. A later one without enough forgets none.
        ([version(1, gates=4, tests=0)], None, 2),
        ([version(1, gates=4, tests=2, alpha=None)], None, 3),
        # After a rollback from 3 to 1.
        ([version(1), version(2), version(3)], 1, 3),
    ],
)
def test_look_counts_gates_since_the_last_promotion(
    versions: list[ModelVersion], stable: int | None, look: int
) -> None:
    assert next_look([version(None), *versions], ref(stable)) == look


def test_order_of_the_log_does_not_matter() -> None:
    versions = [version(number, gates=number) for number in range(1, 6)]
    expected = next_look(versions, ref(2))
    random.Random(1).shuffle(versions)
    assert next_look(versions, ref(2)) == expected == 1 + 3 + 4 + 5
