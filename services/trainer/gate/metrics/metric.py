"""The parts of a gate metric: its figures, its rule, and the examples that it shows in the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

from services.trainer.core.recipe import SHORTER_MARGIN
from services.trainer.gate.eval_set import AnswerPair, EvalOutputs, EvalSet, GenerationTask, LikelihoodTask
from services.trainer.gate.statistics import (
    FAIL_P,
    Interval,
    OutcomePair,
    PairedChange,
    PairedMeanChange,
    ScorePair,
    Severity,
    VoteTest,
    gains,
    judge_change,
    mean_interval,
    paired_change,
    proportion_interval,
    stable_mean,
    vote_test,
)
from shared.versions import Figure, KindTally

T = TypeVar("T")
Json = dict[str, Any]
Layout = Literal["corrections", "pairs", "changes", "golden"]
"""Macros in `report.html` that show a row."""
EVEN = 0.5
"""Win rate of a candidate that is as good as stable."""


@dataclass(frozen=True, slots=True)
class FigureInfo:
    """How people read one figure of a report.

    Attributes:
        name: The figure's name in `GateReport.figures`.
        label: Heading.
        description: What the figure measures, in a few words.
        unit: Unit of its value.
        is_change: Whether the value is candidate minus stable. The baseline, which is what stable reaches, is then
            not on the same scale as the value.
    """

    name: str
    label: str
    description: str = ""
    unit: str = ""
    is_change: bool = False


@dataclass(frozen=True, slots=True)
class ReportSection:
    """Examples behind a metric's figures, shown below them in the report.

    Attributes:
        name: Field of the report's JSON.
        title: Heading on the page.
        layout: How the page shows a row.
        rows: Returns the rows. `changes` needs the fields `question`, `candidate`, `stable` and `won`.
        intro: Text below the heading; `{count}` is replaced with the number of ranked rows.
        rank: Returns how much better the candidate did in a row, or None to leave the row out. The page then shows
            only the best and the worst rows. Without it the page shows all rows.
        shown: Number of best rows, and of worst rows, on the page.
        note: Returns a remark on a row, for `changes`.
        if_empty: Text if there are no rows to show. Without it the page leaves the section out.
    """

    name: str
    title: str
    layout: Layout
    rows: Callable[[EvalSet, EvalOutputs], list[Json]]
    intro: str = ""
    rank: Callable[[Json], float | None] | None = None
    shown: int = 10
    note: Callable[[Json], str] = lambda row: ""
    if_empty: str = ""


@dataclass(frozen=True, slots=True)
class ItemVote:
    """What one judgement of a held-out user says about candidate and stable.

    Attributes:
        user: Pseudonym of the user.
        group: Question group of the item: items of one group ask for the same fact.
        kind: Kind of the item, such as `corrections` or `thumbs`, for the ledger of the report.
        outcome: 1 if the candidate is better, 0 for a tie, -1 if it is worse.
        identity: Identity of the item.
    """

    user: str
    group: str
    kind: str
    outcome: int
    identity: str

    def decided(self, outcome: int) -> ItemVote:
        """Return the vote with the outcome of a judge model, if there is one and the rules leave a tie."""
        if self.outcome or not outcome:
            return self
        return replace(self, outcome=outcome, kind=f"{self.kind}, by judge model")


@dataclass(frozen=True, slots=True)
class Votes:
    """The items that decide whether the candidate is better, one vote for each."""

    items: tuple[ItemVote, ...] = ()

    @property
    def wins(self) -> int:
        """Number of items on which the candidate is better."""
        return sum(item.outcome > 0 for item in self.items)

    @property
    def losses(self) -> int:
        """Number of items on which the candidate is worse."""
        return sum(item.outcome < 0 for item in self.items)

    @property
    def ties(self) -> int:
        """Number of items on which neither is better."""
        return sum(item.outcome == 0 for item in self.items)

    @property
    def outcomes(self) -> list[int]:
        """Outcomes of the items."""
        return [item.outcome for item in self.items]

    @property
    def users(self) -> list[str]:
        """Users of the items."""
        return [item.user for item in self.items]

    @property
    def groups(self) -> list[str]:
        """Question groups of the items."""
        return [item.group for item in self.items]

    @property
    def tally(self) -> str:
        """Wins, losses and ties in words."""
        return f"{self.wins} won, {self.losses} lost, {self.ties} ties"

    def __len__(self) -> int:
        return len(self.items)

    def ledger(self) -> tuple[KindTally, ...]:
        """Return wins, losses and ties by kind, in order of the kinds."""
        by_kind: dict[str, list[ItemVote]] = {}
        for item in self.items:
            by_kind.setdefault(item.kind, []).append(item)
        parts = {kind: Votes(tuple(items)) for kind, items in sorted(by_kind.items())}
        return tuple(
            KindTally(kind=kind, wins=part.wins, losses=part.losses, ties=part.ties)
            for kind, part in parts.items()
        )

    def test(self) -> VoteTest:
        """Test whether the candidate is better."""
        return vote_test(self.outcomes, self.users, self.groups)

    def test_of_harm(self) -> VoteTest:
        """Test whether the candidate is worse."""
        return vote_test([-outcome for outcome in self.outcomes], self.users, self.groups)

    def __add__(self, other: Votes) -> Votes:
        return Votes(self.items + other.items)


@dataclass(slots=True)
class Judgement:
    """What a metric found, and what follows from it.

    - A reason in `failures` fails the candidate.
    - A reason in `doubts` makes a candidate that would pass inconclusive.
    - `votes` count in the win rate, which decides whether the candidate is better.
    - Without any of them the metric was kept, or it is only information.
    """

    figures: list[Figure] = field(default_factory=list)
    votes: Votes = field(default_factory=Votes)
    failures: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def add_figure(
        self,
        name: str,
        interval: Interval,
        *,
        baseline: float | None = None,
        bound: float | None = None,
        passed: bool | None = None,
    ) -> None:
        """Add a figure, rounded to four places.

        A figure that was not measured is left out, unless it has a bound. Then it is listed with n = 0.

        Args:
            name: Name of the figure.
            interval: The estimate.
            baseline: The same figure for the stable version.
            bound: The value that decides.
            passed: Whether the rule of the metric holds.
        """
        if interval.n == 0 and bound is None:
            return
        self.figures.append(
            Figure(
                name=name,
                n=interval.n,
                value=_rounded(interval.value),
                low=_rounded(interval.low),
                high=_rounded(interval.high),
                baseline=_rounded(baseline),
                bound=bound,
                passed=passed if interval.n else None,
            )
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """What a deployment sets, and how intervals of means are computed.

    Attributes:
        min_items: With fewer items that vote the verdict is inconclusive.
        look: Which gate of the line since its last promotion this is, counted from 1.
        replaces_erased: The candidate replaces a version that was trained on erased data, so it need not be better.
        shorter_margin: How much less likely than stable a candidate may be to continue a long answer.
        mean_interval: Computes the interval of a mean. It costs most of the time of a verdict, so simulations
            replace it.
    """

    min_items: int
    look: int = 1
    replaces_erased: bool = False
    shorter_margin: float = SHORTER_MARGIN
    mean_interval: Callable[[Sequence[float]], Interval] = mean_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Generic[T]):
    """One metric of the gate.

    Attributes:
        name: Key of the metric's values in `Measurements`.
        figures: The figures that `judge` may add.
        measure: Computes the metric's values. Returns an empty value for an empty evaluation.
        judge: The rule: turns the values into figures and reasons. Pure.
        tasks: What must be generated or scored for `measure`. A task that several metrics share runs once.
        against_base: Whether the candidate is also judged against the base, by the same rule. Each promotion may cost
            a little; compared with stable alone, many promotions could cost anything.
        votes: Whether its judgement has votes.
        section: Examples for the report.
    """

    name: str
    figures: tuple[FigureInfo, ...]
    measure: Callable[[EvalSet, EvalOutputs], T]
    judge: Callable[[T, JudgeOptions], Judgement]
    tasks: tuple[GenerationTask | LikelihoodTask, ...] = ()
    against_base: bool = False
    votes: bool = False
    section: ReportSection | None = None


def changed_row(question: str, answers: AnswerPair, outcomes: OutcomePair, **notes: Any) -> list[Json]:
    """Return the row of a report for answers of which only one is right, for the layout `changes`; else no row.

    Args:
        question: What was asked.
        answers: The answers of candidate and stable.
        outcomes: Whether each is right.
        notes: Further fields, such as the right answer.
    """
    won, stable_right = outcomes
    if won == stable_right:
        return []
    return [{"question": question, "candidate": answers[0], "stable": answers[1], **notes, "won": won}]


def add_paired_share(
    judgement: Judgement,
    name: str,
    subject: str,
    pairs: Sequence[OutcomePair],
    *,
    margin: float,
    doubt_p: float,
    options: JudgeOptions,
    fail_p: float = FAIL_P,
) -> None:
    """Add a share and its change from stable (figures `name` and `name_change`), judged by McNemar's test.

    Args:
        judgement: Receives the figures, and a reason if the share fell.
        name: Name of the share's figure.
        subject: What fell, at the start of the reason.
        pairs: Whether candidate and stable were right, question by question.
        margin: Largest fall that is accepted, as a share.
        doubt_p: See `judge_change`.
        options: Options of the gate.
        fail_p: See `judge_change`.
    """
    hits = sum(candidate for candidate, _ in pairs)
    judgement.add_figure(name, proportion_interval(hits, len(pairs)), baseline=stable_mean(pairs))
    change = paired_change(pairs)
    difference = options.mean_interval(gains(pairs))
    severity = judge_change(change, margin, doubt_p, fail_p)
    _add_change(judgement, name, subject, change, difference, margin, severity)


def add_paired_mean(
    judgement: Judgement,
    name: str,
    subject: str,
    pairs: Sequence[ScorePair],
    *,
    margin: float,
    doubt_p: float,
    options: JudgeOptions,
) -> None:
    """Add a mean of shares and its change from stable, judged by a test of signs. See `add_paired_share`.

    `pairs`: shares of candidate and stable, question by question.
    """
    judgement.add_figure(
        name, options.mean_interval([float(candidate) for candidate, _ in pairs]), baseline=stable_mean(pairs)
    )
    change = PairedMeanChange(gains(pairs))
    severity = judge_change(change, margin, doubt_p)
    _add_change(judgement, name, subject, change, options.mean_interval(change.gains), margin, severity)


def _add_change(
    judgement: Judgement,
    name: str,
    subject: str,
    change: PairedChange | PairedMeanChange,
    difference: Interval,
    margin: float,
    severity: Severity,
) -> None:
    """Add the figure of a change, and the reason that follows from it."""
    judgement.add_figure(f"{name}_change", difference, bound=-margin, passed=severity == "kept")
    reason = f"{subject} fell by {-100 * change.value:.1f} points"
    if severity == "failed":
        judgement.failures.append(reason)
    elif severity == "inconclusive":
        judgement.doubts.append(
            f"{reason}: {change.lost} lost, {change.won} won of {change.n}, too few to exclude chance"
        )
