"""Error rates of the gate's rules, by simulation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.gate.calibration import BETTER, NULL, SimulatedCandidate, simulate


@pytest.mark.parametrize(
    "null",
    [NULL, replace(NULL, decided=0.9), replace(NULL, items=200, decided=0.8)],
    ids=["many ties", "few ties", "many items"],
)
def test_at_most_one_null_candidate_in_forty_passes(null: SimulatedCandidate) -> None:
    assert simulate(null, candidates=2000)["passed"] <= 0.025


def test_no_null_candidate_passes_with_too_few_items() -> None:
    assert simulate(replace(NULL, items=29, decided=0.9), candidates=300)["passed"] == 0


def test_better_candidate_passes_unless_it_lost_general_accuracy() -> None:
    assert simulate(BETTER, candidates=400)["passed"] >= 0.8
    assert simulate(replace(BETTER, accuracy_loss=0.05), candidates=400)["passed"] <= 0.25
    assert simulate(replace(BETTER, accuracy_loss=0.08), candidates=400)["passed"] <= 0.03
