"""Greedy answers to held-out corrections: the items of the win rate, and how well they are answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.trainer.gate.eval_set import EvalOutputs, EvalSet, GenerationTask
from services.trainer.gate.metrics.correction_likelihood import CORRECTION_LIKELIHOODS
from services.trainer.gate.metrics.metric import (
    FigureInfo,
    ItemVote,
    Json,
    Judgement,
    JudgeOptions,
    Metric,
    ReportSection,
    Votes,
)
from services.trainer.gate.scorers import chrf, outcome
from services.trainer.gate.statistics import ScorePair, gains, stable_mean

if TYPE_CHECKING:
    from services.trainer.gate.eval_items import EvalItem

KIND = "corrections"
"""Kind of these items in the ledger of votes."""
CORRECTION_ANSWERS = GenerationTask(
    name="answers",
    prompts=lambda eval_set: [item.row.messages for item in eval_set.corrections],
    max_new_tokens=lambda recipe: recipe.gate_answer_tokens,
)


@dataclass(frozen=True, slots=True)
class CorrectionScores:
    """Scores of both versions' answers.

    Attributes:
        scores: Scores (`scorers.Rubric`) of the items that count in the win rate.
        facts: Of those whose correction says or adds something, the share of it in the answer.
        chrf: Of all of those, chrF to the correction.
        seen_wordings: Scores of the items in a wording that was trained.
        votes: The outcomes of the items in `scores`.
    """

    scores: Sequence[ScorePair] = ()
    facts: Sequence[ScorePair] = ()
    chrf: Sequence[ScorePair] = ()
    seen_wordings: Sequence[ScorePair] = ()
    votes: Votes = field(default_factory=Votes)


def item_scores(item: EvalItem, candidate: str, stable: str) -> ScorePair:
    """Return the scores of both answers to an item."""
    return item.rubric.score(candidate), item.rubric.score(stable)


def item_vote(item: EvalItem, candidate: str, stable: str) -> ItemVote:
    """Return which of both answers to an item is better."""
    row = item.row
    return ItemVote(
        row.user_id, item.group, KIND, outcome(*item_scores(item, candidate, stable)), row.identity
    )


def _measure(eval_set: EvalSet, outputs: EvalOutputs) -> CorrectionScores:
    answered = list(zip(eval_set.corrections, outputs.answers_to(CORRECTION_ANSWERS), strict=True))
    counting = [(item, *answers) for item, answers in answered if item.category == "wins"]
    return CorrectionScores(
        scores=[item_scores(*answers) for answers in counting],
        facts=[
            (candidate_facts, stable_facts)
            for item, candidate, stable in counting
            if (candidate_facts := item.rubric.facts(candidate)) is not None
            and (stable_facts := item.rubric.facts(stable)) is not None
        ],
        chrf=[
            (chrf(candidate, item.row.answer), chrf(stable, item.row.answer))
            for item, candidate, stable in counting
        ],
        seen_wordings=[item_scores(item, *answers) for item, answers in answered if item.category == "seen"],
        votes=Votes(
            tuple(
                item_vote(*answers).decided(outputs.decided_by_judge(answers[0].row.identity))
                for answers in counting
            )
        ),
    )


def _judge(values: CorrectionScores, options: JudgeOptions) -> Judgement:
    judgement = Judgement(votes=values.votes)
    for name, pairs in (
        ("items_score_gain", values.scores),
        ("items_facts_gain", values.facts),
        ("items_chrf_gain", values.chrf),
        ("seen_wordings_score_gain", values.seen_wordings),
    ):
        judgement.add_figure(name, options.mean_interval(gains(pairs)), baseline=stable_mean(pairs))
    return judgement


def _rows(eval_set: EvalSet, outputs: EvalOutputs) -> list[Json]:
    likelihoods = outputs.likelihoods_of(CORRECTION_LIKELIHOODS)
    rows = []
    for i, (item, (candidate, stable)) in enumerate(
        zip(eval_set.corrections, outputs.answers_to(CORRECTION_ANSWERS), strict=True)
    ):
        candidate_score, stable_score = item_scores(item, candidate, stable)
        rows.append(
            {
                "identity": item.row.identity,
                "counts": item.category,
                "question": item.row.question,
                "correction": item.row.answer,
                "keys": list(item.rubric.labels),
                "candidate": candidate,
                "stable": stable,
                "candidate_score": round(candidate_score, 4),
                "stable_score": round(stable_score, 4),
                "outcome": outcome(candidate_score, stable_score)
                or outputs.decided_by_judge(item.row.identity),
                "likelihood_gain": round(likelihoods[i].gain, 4) if likelihoods else None,
            }
        )
    return rows


def _rank(row: Json) -> float | None:
    return row["candidate_score"] - row["stable_score"] if row["counts"] == "wins" else None


CORRECTIONS = Metric(
    name="corrections",
    figures=(
        FigureInfo(
            "items_score_gain",
            "Score of answers",
            "how much of what the user changed is in the answer; change from stable",
            "1: the correction, 0: the original",
            is_change=True,
        ),
        FigureInfo(
            "items_facts_gain",
            "Facts in answers",
            "share of what the correction says or adds in the answer; change from stable, for information",
            "share",
            is_change=True,
        ),
        FigureInfo(
            "items_chrf_gain",
            "Similarity to corrections (chrF)",
            "change from stable, for information",
            "chrF from 0 to 1",
            is_change=True,
        ),
        FigureInfo(
            "seen_wordings_score_gain",
            "Score of answers in trained wordings",
            "change from stable, for information",
            "1: the correction, 0: the original",
            is_change=True,
        ),
    ),
    measure=_measure,
    judge=_judge,
    votes=True,
    tasks=(CORRECTION_ANSWERS,),
    section=ReportSection(
        name="items",
        title="Answers to held-out corrections",
        layout="corrections",
        rows=_rows,
        intro="Items in a wording that neither version was trained on: {count}. The score measures how much of "
        "what the user changed is in the answer: the correction has 1, the original 0.",
        rank=_rank,
        if_empty="No held-out correction is in a wording that was not trained.",
    ),
)
