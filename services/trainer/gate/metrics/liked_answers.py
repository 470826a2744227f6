"""Greedy answers to questions whose answer held-out users liked. A candidate must not forget what stable still says.

A version says what was liked if its answer has `scorers.SAID_SHARE` of the facts of the liked answer. An answer without
facts that can be checked, such as a poem, is a tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.trainer.gate.eval_set import EvalOutputs, EvalSet, GenerationTask
from services.trainer.gate.metrics.metric import (
    FigureInfo,
    ItemVote,
    Json,
    Judgement,
    JudgeOptions,
    Metric,
    ReportSection,
    Votes,
    add_paired_share,
)
from services.trainer.gate.scorers import SAID_SHARE, key_recall, liked_outcome
from services.trainer.gate.statistics import FAIL_P, OutcomePair

if TYPE_CHECKING:
    from services.trainer.gate.eval_items import LikedItem

KIND = "liked"
"""Kind of these items in the ledger of votes."""
LIKED_MARGIN = 0.1
"""Falls up to this share are accepted: stable gave most of these answers itself, so any other version gives fewer."""
LIKED_ANSWERS = GenerationTask(
    name="liked",
    prompts=lambda eval_set: [item.row.messages for item in eval_set.liked],
    max_new_tokens=lambda recipe: recipe.gate_answer_tokens,
)


@dataclass(frozen=True, slots=True)
class LikedOutcomes:
    """What became of liked answers.

    Attributes:
        said: Whether candidate and stable still say what was liked, for each answer with facts.
        votes: The outcomes of the items that count in the win rate.
    """

    said: Sequence[OutcomePair] = ()
    votes: Votes = field(default_factory=Votes)


def fact_shares(item: LikedItem, candidate: str, stable: str) -> tuple[float, float]:
    """Return the share of the liked answer's facts in both answers; none without facts."""
    if not item.facts:
        return 0.0, 0.0
    return key_recall(candidate, item.facts), key_recall(stable, item.facts)


def liked_vote(item: LikedItem, candidate: str, stable: str) -> ItemVote:
    """Return which of both answers still says what was liked."""
    row, outcome = item.row, liked_outcome(*fact_shares(item, candidate, stable))
    return ItemVote(row.user_id, item.group, KIND, outcome, row.identity)


def _measure(eval_set: EvalSet, outputs: EvalOutputs) -> LikedOutcomes:
    answered = [
        (item, candidate, stable)
        for item, (candidate, stable) in zip(eval_set.liked, outputs.answers_to(LIKED_ANSWERS), strict=True)
    ]
    shares = [fact_shares(*one) for one in answered if one[0].facts]
    return LikedOutcomes(
        said=[(candidate >= SAID_SHARE, stable >= SAID_SHARE) for candidate, stable in shares],
        votes=Votes(
            tuple(
                liked_vote(*one).decided(outputs.decided_by_judge(one[0].row.identity))
                for one in answered
                if one[0].category == "wins"
            )
        ),
    )


def _judge(values: LikedOutcomes, options: JudgeOptions) -> Judgement:
    judgement = Judgement(votes=values.votes)
    add_paired_share(
        judgement,
        "liked_said",
        "answers that held-out users liked",
        values.said,
        margin=LIKED_MARGIN,
        doubt_p=FAIL_P,
        options=options,
    )
    return judgement


def _rows(eval_set: EvalSet, outputs: EvalOutputs) -> list[Json]:
    """Return the items of which only one version says what was liked."""
    rows = []
    for item, (candidate, stable) in zip(eval_set.liked, outputs.answers_to(LIKED_ANSWERS), strict=True):
        vote = liked_vote(item, candidate, stable).decided(outputs.decided_by_judge(item.row.identity))
        if vote.outcome:
            rows.append(
                {
                    "identity": vote.identity,
                    "counts": item.category,
                    "question": item.row.question,
                    "liked": item.row.answer,
                    "facts": list(item.facts),
                    "candidate": candidate,
                    "stable": stable,
                    "won": vote.outcome > 0,
                }
            )
    return rows


LIKED = Metric(
    name="liked_answers",
    figures=(
        FigureInfo(
            "liked_said",
            "Liked answers still given",
            "answers with the facts of one that a held-out user liked",
            "share",
        ),
        FigureInfo(
            "liked_said_change",
            "Liked answers still given, change from stable",
            "beyond the bound, McNemar's exact test decides",
            "share",
        ),
    ),
    measure=_measure,
    judge=_judge,
    votes=True,
    tasks=(LIKED_ANSWERS,),
    against_base=True,
    section=ReportSection(
        name="liked",
        title="Liked answers that only one version still gives",
        layout="changes",
        rows=_rows,
        note=lambda row: f"liked answer: {row['liked']}",
    ),
)
