"""Question groups of held-out feedback, and the votes that carry them."""

from __future__ import annotations

from dataclasses import replace

from services.trainer.dataset.filters import GroupedRow
from services.trainer.gate.eval_items import build_eval_items
from services.trainer.gate.eval_set import EvalOutputs, EvalSet, LikelihoodScores
from services.trainer.gate.metrics.corrections import CORRECTION_ANSWERS, CORRECTIONS
from services.trainer.gate.metrics.metric import ItemVote, JudgeOptions
from services.trainer.gate.metrics.pair_margins import BETTER_ANSWERS, PAIR_MARGINS, WORSE_ANSWERS
from services.trainer.gate.preference_pairs import build_preference_pairs
from services.trainer.gate.question_groups import question_groups
from tests.trainer_factories import LINE, row

OPTIONS = JudgeOptions(min_items=1)
ROWS = [
    GroupedRow(row("Who founded Acme?", "Ida Voss did.", "ann", "a"), 1),
    GroupedRow(row("Whose idea was Acme?", "It was Ida Voss.", "bob", "b"), 1),
    GroupedRow(replace(row("whose idea was Acme", "Ida.", "cem", "c"), kind="thumbs", objective="kto"), 7),
    GroupedRow(replace(row("Acme: whose idea?", "Joe.", "dee", "d"), kind="thumbs", objective="kto"), 8),
    GroupedRow(row("What does model A cost?", "20 dollars.", "eve", "e"), 2),
    GroupedRow(row("What does model B cost?", "30 dollars.", "eve", "f"), 3),
]
ROWS[2:4] = [
    GroupedRow(replace(one.row, label=label), one.group)
    for one, label in zip(ROWS[2:4], (True, False), strict=True)
]


def test_judged_answers_join_the_group_of_a_correction() -> None:
    groups = question_groups(ROWS)
    assert len({groups[one.row.identity] for one in ROWS[:4]}) == 1
    assert len(set(groups.values())) == 3
    assert question_groups([]) == {}


def test_groups_do_not_depend_on_the_order_of_rows() -> None:
    assert question_groups(ROWS) == question_groups(ROWS[::-1])


def test_votes_name_user_group_kind_and_outcome() -> None:
    groups = question_groups(ROWS)
    eval_set = EvalSet(
        corrections=[
            replace(item, category="wins")
            for item in build_eval_items(LINE, ROWS, ["Who founded Acme?"], []).corrections[:2]
        ],
        pairs=build_preference_pairs(LINE, ROWS, []),
    )
    outputs = EvalOutputs(
        answers={CORRECTION_ANSWERS: [("Ida Voss", "Nobody"), ("Nobody", "Ida Voss")]},
        likelihoods={
            BETTER_ANSWERS: [LikelihoodScores(1.0, 1.5, 0.0)],
            WORSE_ANSWERS: [LikelihoodScores(1.0, 1.0, 0.0)],
        },
    )
    given = [
        vote
        for metric in (CORRECTIONS, PAIR_MARGINS)
        for vote in metric.judge(metric.measure(eval_set, outputs), OPTIONS).votes.items
    ]
    founder = groups[ROWS[0].row.identity]
    assert given == [
        ItemVote("ann", founder, "corrections", 1, ROWS[0].row.identity),
        ItemVote("bob", founder, "corrections", -1, ROWS[1].row.identity),
        ItemVote("cem", founder, "thumbs", 1, eval_set.pairs[0].identity),
    ]
