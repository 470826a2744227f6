"""The verdict on a candidate. Pure: from measurements to a report (`docs/decisions/gate.md`).

- `failed`: a metric failed, or the candidate is not ahead of stable (or of the control), or too little for any number
  of items that a gate can have to show it.
- `inconclusive`: there are too few items, users or questions; or the candidate is ahead but this is not shown yet (the
  report says about how many more items would decide); or a metric has a doubt.
- `passed`: the candidate is better than stable by the test of votes, and than the control if there was one, and every
  metric was kept, compared with stable and with the base.

A candidate that replaces a version trained on erased data need not be better: it passes if no metric failed or has a
doubt, and it is not shown to be worse. It need not have enough items either, since the version that it replaces must
not stay.

All kinds of feedback vote in one test, so there is one chance to pass by luck. Its significance level falls with each
gate since the last promotion.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from services.trainer.gate.eval_set import EvalOutputs, EvalSet
from services.trainer.gate.limits import FIRST_ALPHA, MAX_PAIRS, gate_alpha, min_clusters
from services.trainer.gate.metrics import METRICS, Measurements, measure_all
from services.trainer.gate.metrics.liked_answers import KIND as LIKED_KIND
from services.trainer.gate.metrics.metric import EVEN, FigureInfo, Judgement, JudgeOptions, Votes
from services.trainer.gate.power import GateSize, describe
from services.trainer.gate.statistics import (
    MAX_ITEMS,
    Interval,
    cluster_means,
    growth_needed,
    more_items_needed,
)
from shared.feedback_kinds import PAIR_MATCHERS
from shared.versions import ControlState, Figure, GateReport, GateTest, Verdict

PASSED: Final = "better on held-out feedback, no worse elsewhere"
REPLACES_ERASED: Final = (
    "replaces a version that was trained on erased data: no worse, and not asked to be better"
)
CONTROL_NOT_RUN: Final = "control not run: part of the lead may be chance"
WIN_RATE: Final = FigureInfo(
    "win_rate",
    "Held-out items won",
    "items that the candidate wins, among those that it wins or loses; items of one user are not independent",
    "share",
)
USER_VOTES: Final = FigureInfo(
    "user_votes",
    "Lead over stable, by user",
    "wins minus losses among a user's items, averaged over users; decides the verdict",
    "from -1 to 1",
    is_change=True,
)
GROUP_VOTES: Final = FigureInfo(
    "group_votes",
    "Lead over stable, by question",
    "the same, averaged over different questions; decides the verdict",
    "from -1 to 1",
    is_change=True,
)
CONTROL_VOTES: Final = FigureInfo(
    "control_votes",
    "Lead over the control, by user",
    "the control was trained like the candidate, on permuted answers",
    "from -1 to 1",
    is_change=True,
)
VOTE_FIGURES: Final = (WIN_RATE, USER_VOTES, GROUP_VOTES, CONTROL_VOTES)
BASE_PREFIX: Final = "base_"
"""Prefix of figures that compare the candidate with the base."""
AGAINST_BASE: Final = "compared with the base, "


def _base_figures() -> tuple[FigureInfo, ...]:
    """Return the figures that compare the candidate with the base: the changes that are judged against it."""
    return tuple(
        FigureInfo(
            BASE_PREFIX + figure.name,
            figure.label.replace("change from stable", "change from the base"),
            figure.description,
            figure.unit,
            figure.is_change,
        )
        for metric in METRICS
        if metric.against_base
        for figure in metric.figures
        if figure.is_change
    )


BASE_FIGURES: Final = _base_figures()


def votes_of(measurements: Measurements, options: JudgeOptions) -> Votes:
    """Return all votes in measurements, such as those of the candidate against a control."""
    votes = (
        metric.judge(measurements[metric.name], options).votes
        for metric in METRICS
        if metric.name in measurements
    )
    return sum(votes, Votes())


def decide(
    measurements: Measurements,
    *,
    gated_against: str,
    options: JudgeOptions,
    against_base: Measurements | None = None,
    control: Votes | None = None,
    seconds: float = 0.0,
) -> GateReport:
    """Return the report on a candidate.

    Args:
        measurements: Values of the metrics, by name. A metric that is missing was not measured.
        gated_against: Name of the stable version.
        options: Options of the gate.
        against_base: Values of the metrics with the base in the place of stable. None if stable is the base.
        control: Votes of the candidate against a control on the same items (`votes_of`). None if there was none.
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
    judgements += _judge_against_base(against_base or {}, options)
    failures = [reason for judgement in judgements for reason in judgement.failures]
    doubts = [reason for judgement in judgements for reason in judgement.doubts]
    compared = _Comparison(votes, options)
    against_control = _Comparison(control, options) if control is not None else None
    decision = _decide(compared, against_control, options, failures, doubts)
    state: ControlState = "not_run"
    if against_control is not None:
        state = "passed" if against_control.is_better else "not_passed"
    return GateReport(
        verdict=decision.verdict,
        reasons=tuple(decision.reasons),
        figures=(
            *_vote_figures(compared, against_control, options),
            *(figure for judgement in judgements for figure in judgement.figures),
        ),
        gated_against=gated_against,
        more_items=decision.more_items,
        seconds=round(seconds, 1),
        look=options.look,
        alpha=None if compared.missing else compared.alpha,
        test=compared.as_part() if votes else None,
        ledger=votes.ledger(),
        control_state=state,
        control=against_control.as_part() if against_control is not None else None,
    )


# --- votes --------------------------------------------------------------------------------------------------------


class _Comparison:
    """The candidate against another version on the items that vote."""

    def __init__(self, votes: Votes, options: JudgeOptions) -> None:
        self.votes = votes
        self.test = votes.test()
        self.alpha = gate_alpha(options.look)
        least = min_clusters(self.alpha)
        self.missing = [
            (have, need, unit)
            for have, need, unit in (
                (len(votes), options.min_items, "items"),
                (self.test.users, least, "users"),
                (self.test.groups, least, "different questions"),
            )
            if have < need
        ]
        self.is_better = not self.missing and self.test.shows(self.alpha)
        self.is_ahead = bool(votes) and all(
            cluster_means(votes.outcomes, labels).sum() > 0 for labels in (votes.users, votes.groups)
        )
        self.more_items = more_items_needed(
            len(votes),
            growth_needed(votes.outcomes, votes.users, votes.groups, gate_alpha(options.look + 1)),
            _reachable(votes),
        )

    @property
    def size(self) -> GateSize:
        """How much feedback was compared."""
        improvable = sum(item.kind != LIKED_KIND for item in self.votes.items)
        return GateSize(self.test.users, self.test.groups, len(self.votes), improvable)

    def as_part(self) -> GateTest:
        """Return the test for the report."""
        votes, test = self.votes, self.test
        return GateTest(
            wins=votes.wins,
            losses=votes.losses,
            ties=votes.ties,
            users=test.users,
            groups=test.groups,
            p_users=round(test.p_users, 6),
            p_groups=round(test.p_groups, 6),
        )

    @property
    def summary(self) -> str:
        """The tally with the p-value, in words."""
        return (
            f"{self.votes.tally}; chance alone would do as well with a probability of {self.test.p_value:.2g}, "
            f"and {self.alpha:.2g} is allowed"
        )


def _reachable(votes: Votes) -> int:
    """Return how many more items of the kinds present a gate can count."""
    pair_kinds = {matcher.name for matcher in PAIR_MATCHERS}
    counts = Counter(item.kind for item in votes.items)
    return sum((MAX_PAIRS if kind in pair_kinds else MAX_ITEMS) - count for kind, count in counts.items())


def _vote_figures(
    compared: _Comparison, against_control: _Comparison | None, options: JudgeOptions
) -> list[Figure]:
    votes, found = compared.votes, Judgement()
    decided = votes.wins + votes.losses
    found.add_figure(
        WIN_RATE.name,
        Interval(decided, votes.wins / decided if decided else None),
        bound=EVEN,
        passed=compared.is_better,
    )
    shown = [
        (USER_VOTES, votes, votes.users, compared.is_better),
        (GROUP_VOTES, votes, votes.groups, compared.is_better),
    ]
    if against_control is not None:
        control = against_control.votes
        shown.append((CONTROL_VOTES, control, control.users, against_control.is_better))
    for info, given, labels, passed in shown:
        means = cluster_means(given.outcomes, labels).tolist() if given else []
        found.add_figure(info.name, options.mean_interval(means), bound=0.0, passed=passed)
    return found.figures


# --- the base -----------------------------------------------------------------------------------------------------


def _judge_against_base(measurements: Measurements, options: JudgeOptions) -> list[Judgement]:
    """Judge the candidate against the base: with the same rules, and without votes."""
    judgements, names = [], {figure.name for figure in BASE_FIGURES}
    for metric in METRICS:
        if not metric.against_base or metric.name not in measurements:
            continue
        found = metric.judge(measurements[metric.name], options)
        judgements.append(
            Judgement(
                figures=[
                    figure.model_copy(update={"name": BASE_PREFIX + figure.name})
                    for figure in found.figures
                    if BASE_PREFIX + figure.name in names
                ],
                failures=[AGAINST_BASE + reason for reason in found.failures],
                doubts=[AGAINST_BASE + reason for reason in found.doubts],
            )
        )
    return judgements


# --- the verdict --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Decision:
    verdict: Verdict
    reasons: list[str]
    more_items: int | None = None


def _decide(
    compared: _Comparison,
    against_control: _Comparison | None,
    options: JudgeOptions,
    failures: list[str],
    doubts: list[str],
) -> _Decision:
    if failures:
        return _Decision("failed", failures)
    if options.replaces_erased:
        return _decide_replacement(compared, doubts)
    if compared.missing:
        return _missing(compared, doubts)
    if not compared.is_better:
        return _not_shown("not shown to be better", compared, doubts)
    if doubts:
        return _Decision("inconclusive", doubts)
    if against_control is None:
        return _Decision("passed", [PASSED, CONTROL_NOT_RUN])
    if not against_control.is_better:
        return _not_shown(
            "no better than a control that was trained on permuted answers", against_control, []
        )
    return _Decision("passed", [PASSED])


def _decide_replacement(compared: _Comparison, doubts: list[str]) -> _Decision:
    if compared.votes and compared.votes.test_of_harm().p_value <= FIRST_ALPHA:
        return _Decision("failed", [f"worse than the version that it replaces: {compared.votes.tally}"])
    if doubts:
        return _Decision("inconclusive", doubts)
    return _Decision("passed", [PASSED if compared.is_better else REPLACES_ERASED])


def _missing(compared: _Comparison, doubts: list[str]) -> _Decision:
    """Return what is missing for a test, in one sentence."""
    parts = [f"{have} of {need} {unit}" for have, need, unit in compared.missing]
    reason = f"too little held-out feedback to decide: {', '.join(parts)}"
    return _Decision(
        "inconclusive", [reason, *doubts], max(need - have for have, need, _ in compared.missing)
    )


def _not_shown(what: str, compared: _Comparison, doubts: list[str]) -> _Decision:
    reason = f"{what}: {compared.summary}"
    more = compared.more_items
    if more is not None:
        about = f"about {more} more items of new users and questions would decide if the lead stays the same"
        return _Decision(
            "inconclusive", [f"{reason}; {about}", describe(compared.size, compared.alpha), *doubts], more
        )
    limit = "; a gate cannot have enough items to decide so small a lead" if compared.is_ahead else ""
    return _Decision("failed", [reason + limit])
