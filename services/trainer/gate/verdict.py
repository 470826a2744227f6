"""The verdict on a candidate. Pure: from measurements to a report (`docs/decisions/gate.md`).

- `failed`: a metric failed, or at most half of the decided items were won.
- `inconclusive`: there are too few items; or more were won than lost, but the interval of the win rate contains one
  half (the report says about how many more items would decide); or a metric has a doubt.
- `passed`: the exact 95 % interval of the win rate is above one half, and every metric was kept.

A candidate that replaces a version trained on erased data need not be better: it passes if no metric failed or has a
doubt, and the interval of the win rate is not below one half. It need not have enough items either, since the version
that it replaces must not stay.

All kinds of feedback share one win rate, so there is one test, and one chance to pass by luck.
"""

from __future__ import annotations

from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.metrics import METRICS, Measurements, measure_all
from services.trainer.gate.metrics.metric import EVEN, FigureInfo, Judgement, JudgeOptions, Votes
from services.trainer.gate.statistics import more_items_needed, win_rate_interval
from shared.versions import GateReport, Verdict

PASSED = "better on held-out feedback, no worse elsewhere"
REPLACES_ERASED = "replaces a version that was trained on erased data: no worse, and not asked to be better"
WIN_RATE = FigureInfo(
    "win_rate",
    "Held-out items won",
    "items that the candidate wins, among those that it wins or loses; decides the verdict",
    "share",
)


def decide(
    measurements: Measurements, *, gated_against: str, options: JudgeOptions, seconds: float = 0.0
) -> GateReport:
    """Return the report on a candidate.

    Args:
        measurements: Values of the metrics, by name. A metric that is missing was not measured.
        gated_against: Name of the stable version.
        options: Options of the gate.
        seconds: How long the evaluation took.

    Raises:
        KeyError: `measurements` names a metric that does not exist.
    """
    values = dict(measure_all(EvalSet(), EvalOutputs()))
    for name, value in measurements.items():
        if name not in values:
            raise KeyError(f"no metric is called {name!r}: use one of {', '.join(values)}")
        values[name] = value
    judgements = [metric.judge(values[metric.name], options) for metric in METRICS]
    votes = sum((judgement.votes for judgement in judgements), Votes())
    rate = win_rate_interval(votes.wins, votes.losses)
    better = rate.low is not None and rate.low > EVEN
    improvement = Judgement()
    improvement.add_figure(WIN_RATE.name, rate, bound=EVEN, passed=better)
    verdict, reasons, more_items = _verdict(
        votes,
        better=better,
        worse=rate.high is not None and rate.high < EVEN,
        replaces_erased=options.replaces_erased,
        min_items=options.min_items,
        failures=[reason for judgement in judgements for reason in judgement.failures],
        doubts=[reason for judgement in judgements for reason in judgement.doubts],
    )
    return GateReport(
        verdict=verdict,
        reasons=tuple(reasons),
        figures=tuple(figure for judgement in (improvement, *judgements) for figure in judgement.figures),
        gated_against=gated_against,
        more_items=more_items,
        seconds=round(seconds, 1),
    )


def _verdict(
    votes: Votes,
    *,
    better: bool,
    worse: bool,
    replaces_erased: bool,
    min_items: int,
    failures: list[str],
    doubts: list[str],
) -> tuple[Verdict, list[str], int | None]:
    """Return the verdict, its reasons, and about how many more items would decide, if any number would."""
    if failures:
        return "failed", failures, None
    if replaces_erased and worse:
        tally = f"{votes.wins} won, {votes.losses} lost, {votes.ties} ties"
        return "failed", [f"worse than the version that it replaces: {tally}"], None
    is_better = len(votes) >= min_items and better
    if is_better or replaces_erased:
        reason = PASSED if is_better else REPLACES_ERASED
        return ("inconclusive", doubts, None) if doubts else ("passed", [reason], None)
    more = more_items_needed(votes.wins, votes.losses, len(votes), min_items)
    missing = min_items - len(votes)
    if missing > 0:
        needed = f"{missing} more {'is' if missing == 1 else 'are'} needed"
        reason = f"{len(votes)} held-out items in new wordings: {needed} to decide"
        if more and more > missing:
            reason += f"; about {more} at this win rate"
        return "inconclusive", [reason, *doubts], more
    tally = f"{votes.wins} won, {votes.losses} lost, {votes.ties} ties"
    if more is None:
        return "failed", [f"not shown to be better: {tally}"], None
    reason = f"not shown to be better yet: {tally}; about {more} more items would decide at this win rate"
    return "inconclusive", [reason, *doubts], more
