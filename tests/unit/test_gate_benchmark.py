"""Error rates and power of the gate: a quick simulation, and the published one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from benchmarks.gate import rules
from benchmarks.gate.__main__ import RESULTS, summary
from benchmarks.gate.rates import CANDIDATES, CELLS, FLIPS, GATES, is_better, many_gates, one_gate
from benchmarks.gate.rules import chain, verdicts
from benchmarks.gate.simulated_service import Drawing, Service, draw
from benchmarks.gate.tables import TABLES, percent, readme_sentence
from services.trainer.gate.metrics.corrections import KIND, CorrectionScores
from services.trainer.gate.metrics.metric import ItemVote, Votes
from services.trainer.gate.statistics import vote_test
from services.trainer.gate.verdict import decide
from tests.unit.source_tree import ROOT

WORST = [Service(0.3, accuracy, 0.1) for accuracy in (0.5, 0.8)]
"""Users correct far more than they like, and many answers flip: without a control most candidates pass."""


def published() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(RESULTS.read_text())
    return result


# --- the simulation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", WORST, ids=lambda service: f"base {service.accuracy}")
def test_no_better_candidate_passes_rarely_with_a_control_and_often_without(service: Service) -> None:
    passes = one_gate(service, 200, seed=1)[0]["no_better"]
    assert passes.with_control <= 0.05
    assert passes.without_control >= 0.6


@pytest.mark.parametrize("service", WORST, ids=lambda service: f"base {service.accuracy}")
def test_line_that_never_gets_better_is_rarely_promoted_in_thirty_gates(service: Service) -> None:
    assert many_gates(service, 60, seed=1)["with_control"] <= 0.1


def test_candidate_that_fixes_a_third_and_breaks_nothing_passes() -> None:
    for accuracy in (0.0, 0.5, 0.8):
        assert one_gate(Service(0.0, accuracy, 1 / 3), 60, seed=1)[0]["fixes"].with_control >= 0.8


def test_fair_sample_fails_a_candidate_that_breaks_as_many_as_it_fixes() -> None:
    rates = one_gate(Service(0.2, 0.5, likes=1.0), 150, seed=1)[0]
    assert rates["fixes_and_breaks_as_many"].with_control <= 0.05
    assert rates["fixes"].with_control >= 2 * rates["fixes_and_breaks_as_many"].with_control


def test_no_better_candidate_is_right_as_often_as_stable() -> None:
    """The simulation is fair: only the choice of what users judge favours a candidate."""
    drawing = Drawing(Service(0.3, 0.5, 1.0, users=200), np.random.default_rng(2), 60)
    right = drawing.flipped(0.3) == 1.0
    items = drawing.is_item
    assert right[items].mean() == pytest.approx(drawing.right[items].mean(), abs=0.02)
    assert (right != drawing.right)[items].mean() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("look", [1, 7])
def test_simulated_rule_is_that_of_the_gate(look: int) -> None:
    """`is_better` decides by bounds where it can; `decide` computes the exact test."""
    seen = set()
    for service in (Service(0.1, 0.5, 1 / 3, users=12), Service(0.3, 0.8, 0.1, users=9)):
        for drawn in draw(service, list(CANDIDATES.values()), 25, seed=4):
            for outcomes in drawn.against_stable:
                votes = Votes(
                    tuple(
                        ItemVote(f"u{user}", f"g{fact}", KIND, int(outcome), f"{number}")
                        for number, (user, fact, outcome) in enumerate(
                            zip(drawn.users, drawn.facts, outcomes, strict=True)
                        )
                    )
                )
                report = decide(
                    {"corrections": CorrectionScores(votes=votes)},
                    gated_against=rules.BASE,
                    options=rules.options(look),
                )
                assert (report.verdict == "passed") is is_better(outcomes, drawn.users, drawn.facts, look)
                test = vote_test(outcomes, drawn.users, drawn.facts)
                assert report.test is not None
                assert report.test.p_users == pytest.approx(test.p_users, abs=1e-6)
                seen.add(report.verdict == "passed")
    assert seen == {True, False}


# --- general ability ----------------------------------------------------------------------------------------------


def test_better_candidate_passes_unless_it_lost_general_accuracy() -> None:
    assert verdicts(rules.BETTER, 200)["passed"] >= 0.75
    assert verdicts(rules.CASES["better, 5 points lost"], 200)["passed"] <= 0.12
    assert verdicts(rules.CASES["better, 8 points lost"], 200)["passed"] <= 0.03
    assert verdicts(rules.NULL, 300)["passed"] <= 0.025


def test_no_version_after_the_second_of_a_falling_chain_is_promoted() -> None:
    """Each of ten versions answers twelve of 493 questions fewer than the one before: 2.5 points."""
    base = np.arange(493) < 260
    stable, promoted = base, list[int]()
    for number in range(1, 11):
        candidate = base.copy()
        # 40 answers change to right and 40 + 12 for each version to wrong.
        candidate[260:300], candidate[: 40 + 12 * number] = True, False
        against_base = list(zip(candidate.tolist(), base.tolist(), strict=True)) if promoted else None
        if rules.is_promoted(list(zip(candidate.tolist(), stable.tolist(), strict=True)), against_base):
            stable = candidate
            promoted.append(number)
    assert promoted in ([1], [1, 2])


def test_chains_that_fall_by_chance_end_early_because_of_the_base() -> None:
    last = [max(chain(np.random.default_rng(seed)), default=0) for seed in range(60)]
    assert sum(number > 2 for number in last) <= 2
    assert max(last) <= 3
    alone = [max(chain(np.random.default_rng(seed), against_base=False), default=0) for seed in range(60)]
    assert sum(number > 2 for number in alone) >= 8
    assert max(alone) > 3


# --- what is published --------------------------------------------------------------------------------------------


def test_published_rates_hold_the_targets() -> None:
    result = published()
    assert result["simulations"] >= 2000
    assert {(cell["flips"], cell["accuracy"], cell["likes"]) for cell in result["single_gate"]} == {
        (cell.flips, cell.accuracy, cell.likes) for cell in CELLS
    }
    assert result["summary"] == summary(result["single_gate"], result["thirty_gates"])
    assert result["summary"]["false_passes_worst"] <= 0.05
    assert result["summary"]["false_passes_in_thirty_gates_worst"] <= 0.1
    assert result["summary"]["power_without_flips_worst"] >= 0.8
    assert result["chain"]["with_base"]["after_second"] <= 0.02
    assert result["chain"]["with_base"]["after_third"] <= 0.005
    assert set(FLIPS) == {0.0, 0.05, 0.1, 0.2, 0.3}
    assert GATES == 30


def test_published_figures_are_those_of_this_code() -> None:
    """One cell again, with the published number of services."""
    result = published()
    cell = next(cell for cell in result["single_gate"] if cell["flips"] == 0.05 and cell["accuracy"] == 0.8)
    fresh = one_gate(Service(cell["flips"], cell["accuracy"], cell["likes"]), 250, seed=20)[0]
    assert fresh["fixes"].with_control == pytest.approx(cell["fixes"]["with_control"], abs=0.1)


def test_readme_and_decision_quote_the_published_figures() -> None:
    result = published()
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert readme_sentence(result) in readme
    decision = (ROOT / "docs/decisions/gate.md").read_text()
    for make in TABLES:
        assert make(result) in decision, make.__name__
    words = " ".join(decision.split())
    assert f"at most {percent(result['summary']['false_passes_worst'])} pass" in words
    chain_rates = result["chain"]["with_base"]
    assert f"is promoted in {percent(chain_rates['after_second'])} of the chains" in words
    weakest = max(one["no_better"]["with_control"] for one in result["weaker_control"])
    assert f"in {percent(weakest)} of the gates" in words


def test_published_file_has_a_place_for_trained_sham_candidates() -> None:
    sham = published()["sham_candidates"]
    assert sham["candidates"] == 0 or sham["passed"] <= sham["candidates"] / 20
