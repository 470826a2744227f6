"""Preference pairs of held-out users: whether a version finds the better answer more likely than the worse one.

The margin of a pair is the log-likelihood per token of the better answer minus that of the worse one. A candidate wins
a pair if its margin is larger than stable's by more than `PAIR_TIE_MARGIN`. What makes all answers more or less likely
cancels out. Pairs count in the win rate, and no kind of feedback may get worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.trainer.core.chat import Messages
from services.trainer.gate.eval_set import EvalOutputs, EvalSet, LikelihoodTask
from services.trainer.gate.metrics.metric import (
    EVEN,
    FigureInfo,
    ItemVote,
    Json,
    Judgement,
    JudgeOptions,
    Metric,
    ReportSection,
    Votes,
)
from services.trainer.gate.statistics import win_rate_interval
from shared.feedback_kinds import FEEDBACK_KINDS, PAIR_MATCHERS, Matcher, list_names

PAIR_TIE_MARGIN = 0.02
"""Nats per token. A pair whose margin changed by at most this is a tie."""
BETTER_ANSWERS = LikelihoodTask("liked answers", lambda eval_set: [pair.better for pair in eval_set.pairs])
WORSE_ANSWERS = LikelihoodTask("disliked answers", lambda eval_set: [pair.worse for pair in eval_set.pairs])


def _margin_gains(eval_set: EvalSet, outputs: EvalOutputs) -> list[float]:
    """Return how much each pair's margin grew from stable to candidate, in nats per token."""
    likelihoods = zip(
        outputs.likelihoods_of(BETTER_ANSWERS), outputs.likelihoods_of(WORSE_ANSWERS), strict=True
    )
    return [better.gain - worse.gain for _, (better, worse) in zip(eval_set.pairs, likelihoods, strict=True)]


def _outcome(margin_gain: float) -> int:
    return 1 if margin_gain > PAIR_TIE_MARGIN else -1 if margin_gain < -PAIR_TIE_MARGIN else 0


@dataclass(frozen=True, slots=True)
class MarginGain:
    """How much the margin of one pair grew from stable to candidate, in nats per token.

    Attributes:
        user: User of the better answer.
        group: Question group of the better answer.
        gain: Growth of the margin.
        identity: Identity of the pair.
    """

    user: str
    group: str
    gain: float
    identity: str

    def vote(self, kind: str) -> ItemVote:
        """Return whether the candidate wins the pair."""
        return ItemVote(self.user, self.group, kind, _outcome(self.gain), self.identity)


def _measure(eval_set: EvalSet, outputs: EvalOutputs) -> Mapping[str, Sequence[MarginGain]]:
    """Return the margin gains by kind of feedback."""
    by_kind: dict[str, list[MarginGain]] = {}
    for pair, gain in zip(eval_set.pairs, _margin_gains(eval_set, outputs), strict=True):
        by_kind.setdefault(pair.kind, []).append(MarginGain(pair.user, pair.group, gain, pair.identity))
    return by_kind


def _judge(by_kind: Mapping[str, Sequence[MarginGain]], options: JudgeOptions) -> Judgement:
    judgement = Judgement()
    for kind, margin_gains in sorted(by_kind.items()):
        votes = Votes(tuple(one.vote(kind) for one in margin_gains))
        rate = win_rate_interval(votes.wins, votes.losses)
        worse = rate.high is not None and rate.high < EVEN
        judgement.votes += votes
        judgement.add_figure(f"{kind}_win_rate", rate, bound=EVEN, passed=not worse)
        judgement.add_figure(f"{kind}_margin_gain", options.mean_interval([one.gain for one in margin_gains]))
        if worse:
            judgement.failures.append(f"worse on held-out users' {kind}")
    return judgement


def _rows(eval_set: EvalSet, outputs: EvalOutputs) -> list[Json]:
    return [
        {
            "kind": pair.kind,
            "identity": pair.identity,
            "better_question": _question(pair.better[0]),
            "better": pair.better[1],
            "worse_question": _question(pair.worse[0]),
            "worse": pair.worse[1],
            "margin_gain": round(gain, 4),
            "outcome": _outcome(gain),
        }
        for pair, gain in zip(eval_set.pairs, _margin_gains(eval_set, outputs), strict=True)
    ]


def _question(messages: Messages) -> str:
    return " ".join(content for role, content in messages if role == "user")


def _figures(matcher: Matcher) -> tuple[FigureInfo, FigureInfo]:
    return (
        FigureInfo(
            f"{matcher.name}_win_rate",
            f"{matcher.label} won",
            "pairs whose margin grew, among those whose margin changed",
            "share",
        ),
        FigureInfo(
            f"{matcher.name}_margin_gain",
            f"{matcher.label}, margin",
            "better over worse answer; change from stable, for information",
            "nats per token",
            is_change=True,
        ),
    )


_SOURCES = [kind.plural for kind in FEEDBACK_KINDS if kind.matcher in PAIR_MATCHERS]

PAIR_MARGINS = Metric(
    name="pair_margins",
    figures=tuple(figure for matcher in PAIR_MATCHERS for figure in _figures(matcher)),
    measure=_measure,
    judge=_judge,
    votes=True,
    tasks=(BETTER_ANSWERS, WORSE_ANSWERS),
    section=ReportSection(
        name="pairs",
        title=f"Pairs from {list_names(_SOURCES, 'and')}",
        layout="pairs",
        rows=_rows,
        intro="Pairs: {count}. The candidate wins a pair if it prefers the better answer more strongly than stable "
        "does. These are likelihoods of given answers; the candidate did not write them.",
        rank=lambda row: row["margin_gain"],
        shown=5,
    ),
)
