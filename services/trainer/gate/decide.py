"""The verdict: pure, from what was measured to a report. Fewer items than the least: `inconclusive`, with how many are
missing. Anything that got worse: `failed`. Better only if the 95 % interval of the win rate lies above one half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.trainer.gate.intervals import Interval, mean, share, win_rate
from services.trainer.gate.scorers import outcome
from shared.versions import Figure, GateReport, Verdict

EVEN = 0.5
ACCURACY_MARGIN = 0.03
"""General accuracy may be measured this much lower, or more while the paired interval still holds zero: of 60 known
questions three flip by chance alone."""
NLL_MARGIN = 0.15
"""Nats per token by which the candidate may find the base's own answers less likely than stable does."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Paired, candidate beside stable, in the order of items and prompts.

    `wins`, `seen`, `unseen`: scores (candidate, stable). `accuracy`: right or not. `nll`: nats per token.
    """

    wins: Sequence[tuple[float, float]] = ()
    seen: Sequence[tuple[float, float]] = ()
    unseen: Sequence[tuple[float, float]] = ()
    accuracy: Sequence[tuple[bool, bool]] = ()
    nll: Sequence[tuple[float, float]] = ()


@dataclass(slots=True)
class Findings:
    """What speaks against the candidate, and all figures."""

    figures: list[Figure] = field(default_factory=list)
    against: list[str] = field(default_factory=list)


def decide(measured: Measured, gated_against: str, least_items: int, seconds: float = 0.0) -> GateReport:
    """See the module."""
    findings = Findings()
    better = _wins(measured, findings)
    _not_worse(measured, findings)
    items = len(measured.wins)
    verdict: Verdict
    if findings.against:
        verdict, reasons = "failed", findings.against
    elif items < least_items:
        verdict = "inconclusive"
        reasons = [f"{items} held-out items in new wordings: {least_items - items} more are needed to decide"]
    elif not better:
        verdict, reasons = (
            "failed",
            ["not shown to be better: the win rate's interval does not lie above one half"],
        )
    else:
        verdict, reasons = "passed", ["better on what held-out users corrected, no worse elsewhere"]
    return GateReport(
        verdict=verdict,
        reasons=tuple(reasons),
        figures=tuple(findings.figures),
        gated_against=gated_against,
        seconds=round(seconds, 1),
    )


def _figure(
    name: str,
    found: Interval,
    *,
    baseline: float | None = None,
    bound: float | None = None,
    passed: bool | None = None,
) -> Figure:
    def short(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return Figure(
        name=name,
        n=found.n,
        value=short(found.value),
        low=short(found.low),
        high=short(found.high),
        baseline=short(baseline),
        bound=bound,
        passed=passed,
    )


def _tally(scores: Sequence[tuple[float, float]]) -> tuple[int, int]:
    """(wins, losses)"""
    outcomes = [outcome(candidate, stable) for candidate, stable in scores]
    return outcomes.count(1), outcomes.count(-1)


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _wins(measured: Measured, findings: Findings) -> bool:
    rate = win_rate(*_tally(measured.wins))
    better = rate.low is not None and rate.low > EVEN
    findings.figures.append(_figure("win_rate", rate, bound=EVEN, passed=better))
    for name, scores in (("items", measured.wins), ("seen_wordings", measured.seen)):
        gains = mean([candidate - stable for candidate, stable in scores])
        baseline = _average([stable for _, stable in scores])
        findings.figures.append(_figure(f"{name}_score_gain", gains, baseline=baseline))
    return better


def _not_worse(measured: Measured, findings: Findings) -> None:
    other = win_rate(*_tally(measured.unseen))
    fine = other.high is None or other.high >= EVEN
    findings.figures.append(_figure("unseen_win_rate", other, bound=EVEN, passed=fine))
    if not fine:
        findings.against.append("worse on questions that were not trained")

    hits = [candidate for candidate, _ in measured.accuracy]
    before = _average([float(stable) for _, stable in measured.accuracy])
    findings.figures.append(_figure("general_accuracy", share(sum(hits), len(hits)), baseline=before))
    change = mean([float(candidate) - float(stable) for candidate, stable in measured.accuracy])
    kept = (
        change.value is None
        or change.value >= -ACCURACY_MARGIN
        or (change.high is not None and change.high >= 0)
    )
    findings.figures.append(_figure("general_accuracy_change", change, bound=-ACCURACY_MARGIN, passed=kept))
    if not kept:
        findings.against.append(f"general accuracy fell by {-100 * (change.value or 0.0):.1f} points")

    rise = mean([candidate - stable for candidate, stable in measured.nll])
    near = rise.value is None or rise.value <= NLL_MARGIN
    baseline = _average([stable for _, stable in measured.nll])
    findings.figures.append(
        _figure("general_nll_rise", rise, baseline=baseline, bound=NLL_MARGIN, passed=near)
    )
    if not near:
        findings.against.append(
            f"the base's own answers became less likely by {rise.value or 0.0:.2f} nats a token"
        )
