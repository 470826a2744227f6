"""A judge model for tied items: whom it must agree with, how much it may decide, and that the gate can do without."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.trainer.dataset.chat_endpoint import Endpoint, EndpointConfig, EndpointFailed, open_client
from services.trainer.gate.eval_items import EvalItem, LikedItem
from services.trainer.gate.eval_set import EvalOutputs, EvalSet, JudgedTies
from services.trainer.gate.judge_model import (
    MAX_FAILURES,
    MIN_COMPARED,
    Comparison,
    JudgeModel,
    judge_ties,
    prune,
)
from services.trainer.gate.metrics.corrections import CORRECTION_ANSWERS, CORRECTIONS
from services.trainer.gate.metrics.liked_answers import LIKED, LIKED_ANSWERS
from services.trainer.gate.metrics.metric import JudgeOptions
from services.trainer.gate.scorers import build_rubric
from services.trainer.settings import TrainerSettings
from tests.judge_server import Choose, prefers, served
from tests.trainer_factories import row

MODEL = "strong"
KEY = "k-0123456789abcdefghij"
OPTIONS = JudgeOptions(min_items=1)


@dataclass
class FakeJudge:
    """A `Complete` that chooses, fails when told to, and records what it was sent."""

    choose: Choose
    fails: bool = False
    sent: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, instruction: str, material: str) -> str:
        if self.fails:
            raise EndpointFailed("the judge cannot be reached: ConnectError")
        self.sent.append(json.loads(material))
        return self.choose(self.sent[-1]["A"], self.sent[-1]["B"])


def judge(folder: Path, complete: FakeJudge, limit: int = 100, seconds: float = 1e9) -> JudgeModel:
    return JudgeModel(MODEL, complete, folder, seconds, limit)


def evaluated(ties: int = 6, wins: int = 4, liked: int = 0) -> tuple[EvalSet, EvalOutputs]:
    """Return corrections: `wins` that the rules decide, and `ties` to which the candidate answers "good"."""
    items = []
    for i in range(ties + wins):
        one = row(
            f"What is thing {i}?", f"A good walrus of size {100 + i}.", f"u{i}", f"r{i}", original="Bad seal."
        )
        items.append(
            EvalItem(one, build_rubric(one.answer, one.question, original=one.original), "wins", f"g{i}")
        )
    poems = [
        LikedItem(row(f"Write poem {i}.", "A good poem.", f"v{i}", f"l{i}", original=""), (), "wins", f"h{i}")
        for i in range(liked)
    ]
    answers = [("A good thing.", "Other thing.")] * ties + [
        (item.row.answer, "Other thing.") for item in items[ties:]
    ]
    outputs = EvalOutputs(
        answers={CORRECTION_ANSWERS: answers, LIKED_ANSWERS: [("My good poem.", "My poem.")] * liked}
    )
    return EvalSet(corrections=items, liked=poems), outputs


# --- what counts ----------------------------------------------------------------------------------------------------


def test_judge_decides_ties_of_corrections_and_liked_answers(tmp_path: Path) -> None:
    eval_set, outputs = evaluated(ties=4, wins=8, liked=2)
    found = judge_ties(eval_set, outputs, judge(tmp_path, FakeJudge(prefers("good"))))
    assert (found.agreed, found.compared, found.problem) == (12, 12, "")
    assert found.outcomes == {f"r{i}/e-r{i}": 1 for i in range(4)} | {f"l{i}/e-l{i}": 1 for i in range(2)}
    outputs = EvalOutputs(outputs.answers, judge=found)
    of_corrections = CORRECTIONS.judge(CORRECTIONS.measure(eval_set, outputs), OPTIONS).votes.items
    of_likes = LIKED.judge(LIKED.measure(eval_set, outputs), OPTIONS).votes.items
    for votes, by_rules, by_judge in ((of_corrections, 8, 4), (of_likes, 0, 2)):
        assert [vote.kind.endswith("by judge model") for vote in votes if vote.outcome].count(
            True
        ) == by_judge
        assert sum(vote.outcome for vote in votes) == by_rules + by_judge


def test_rules_are_never_overruled(tmp_path: Path) -> None:
    eval_set, outputs = evaluated(ties=0, wins=12)
    against = JudgedTies(MODEL, 12, 12, {item.row.identity: -1 for item in eval_set.corrections})
    votes = CORRECTIONS.measure(eval_set, EvalOutputs(outputs.answers, judge=against)).votes
    assert votes.wins == 12
    complete = FakeJudge(prefers("good"))
    judge_ties(eval_set, outputs, judge(tmp_path, complete))
    assert len(complete.sent) == 2 * 12, "only corrections and originals"


def test_judge_never_decides_more_than_the_rules(tmp_path: Path) -> None:
    eval_set, outputs = evaluated(ties=20, wins=3)
    assert len(judge_ties(eval_set, outputs, judge(tmp_path, FakeJudge(prefers("good")))).outcomes) == 3
    alone, answers = evaluated(ties=20, wins=0)
    assert judge_ties(alone, answers, judge(tmp_path, FakeJudge(prefers("good")))).outcomes == {}


def test_judge_that_prefers_a_position_decides_nothing(tmp_path: Path) -> None:
    eval_set, outputs = evaluated(ties=10, wins=10)

    def first_unless_good_against_bad(a: str, b: str) -> str:
        return prefers("walrus")(a, b) if "walrus" in a + b else "A"

    found = judge_ties(eval_set, outputs, judge(tmp_path, FakeJudge(first_unless_good_against_bad)))
    assert (found.agreed, found.outcomes) == (20, {})


@pytest.mark.parametrize(
    ("choose", "problem"),
    [
        (prefers("seal"), "it agrees with users on 0 of 12 corrections, less than 80%"),
        (lambda a, b: "A", "it had a preference on 0 corrections, and 10 are needed to know its agreement"),
        (
            lambda a, b: "I like both.",
            "it had a preference on 0 corrections, and 10 are needed to know its agreement",
        ),
    ],
)
def test_judge_that_disagrees_with_users_is_not_asked(choose: Choose, problem: str, tmp_path: Path) -> None:
    eval_set, outputs = evaluated(ties=6, wins=6)
    complete = FakeJudge(choose)
    found = judge_ties(eval_set, outputs, judge(tmp_path, complete))
    assert (found.outcomes, found.problem) == ({}, problem)
    assert len(complete.sent) == 2 * 12


@pytest.mark.parametrize(("wrong", "is_used"), [(4, True), (5, False)])
def test_agreement_must_be_four_in_five(wrong: int, is_used: bool, tmp_path: Path) -> None:
    eval_set, outputs = evaluated(ties=10, wins=10)
    disliked = {f"size {100 + i}" for i in range(wrong)}

    def choose(a: str, b: str) -> str:
        if any(size in a + b for size in disliked) and "seal" in a + b:
            return prefers("seal")(a, b)
        return prefers("good")(a, b)

    found = judge_ties(eval_set, outputs, judge(tmp_path, FakeJudge(choose)))
    assert (found.agreed, found.compared) == (20 - wrong, 20)
    assert bool(found.outcomes) == is_used


def test_too_few_corrections_show_no_agreement(tmp_path: Path) -> None:
    eval_set, outputs = evaluated(ties=4, wins=MIN_COMPARED - 5)
    found = judge_ties(eval_set, outputs, judge(tmp_path, FakeJudge(prefers("good"))))
    assert found.outcomes == {}
    assert "10 are needed" in found.problem


# --- what is sent, and bounds ---------------------------------------------------------------------------------------


def test_judge_sees_the_conversation_and_two_answers_only(tmp_path: Path) -> None:
    eval_set, outputs = evaluated(ties=2, wins=8)
    complete = FakeJudge(prefers("good"))
    judge_ties(eval_set, outputs, judge(tmp_path, complete))
    assert {frozenset(sent) for sent in complete.sent} == {frozenset({"conversation", "A", "B"})}
    assert "u1" not in json.dumps(complete.sent)
    asked = [sent for sent in complete.sent if "Other" in sent["A"] + sent["B"]]
    assert len(asked) == 4
    assert all("walrus" not in json.dumps(sent) for sent in asked)


def test_nothing_is_asked_twice_and_no_text_is_stored(tmp_path: Path) -> None:
    eval_set, outputs = evaluated()
    first = judge_ties(eval_set, outputs, judge(tmp_path, FakeJudge(prefers("good"))))
    again = FakeJudge(prefers("good"))
    assert judge_ties(eval_set, outputs, judge(tmp_path, again)) == first
    assert again.sent == []
    assert {file.read_text() for file in tmp_path.iterdir()} <= {"1", "0", "-1"}
    other = FakeJudge(prefers("good"))
    JudgeModel("stronger", other, tmp_path, 1e9, 1).preference(Comparison("i", (("user", "Hi"),), "a", "b"))
    assert len(other.sent) == 2


def test_oldest_replies_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.trainer.gate.judge_model.MAX_CACHED", 5)
    eval_set, outputs = evaluated()
    judge_ties(eval_set, outputs, judge(tmp_path, FakeJudge(prefers("good"))))
    assert len(list(tmp_path.iterdir())) > 5
    prune(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_limit_of_items_and_of_time_hold(tmp_path: Path) -> None:
    eval_set, outputs = evaluated(ties=10, wins=10)
    few = judge_ties(eval_set, outputs, judge(tmp_path / "a", FakeJudge(prefers("good")), limit=3))
    assert len(few.outcomes) == 3
    now = [0.0]

    def slow(a: str, b: str) -> str:
        now[0] += 1.0
        return prefers("good")(a, b)

    late = JudgeModel(MODEL, FakeJudge(slow), tmp_path / "b", 45.0, 100, clock=lambda: now[0])
    found = judge_ties(eval_set, outputs, late)
    assert now[0] <= 47
    assert (len(found.outcomes), found.problem) == (3, "stopped after 45 seconds")


def test_gate_goes_on_without_a_judge_that_fails(tmp_path: Path) -> None:
    eval_set, outputs = evaluated()
    complete = FakeJudge(prefers("good"), fails=True)
    found = judge_ties(eval_set, outputs, judge(tmp_path, complete))
    assert found.outcomes == {}
    assert found.problem.startswith(f"{MAX_FAILURES} comparisons in a row failed")
    assert "the judge cannot be reached" in found.problem
    assert CORRECTIONS.measure(eval_set, EvalOutputs(outputs.answers, judge=found)).votes.wins == 4


# --- over HTTP ------------------------------------------------------------------------------------------------------


def judged_over_http(url: str, folder: Path) -> JudgedTies:
    settings = TrainerSettings(judge_url=url, judge_model=MODEL, judge_key=KEY)  # type: ignore[arg-type]
    config = EndpointConfig(settings.judge_url, settings.judge_key, 5.0, 100)
    eval_set, outputs = evaluated(ties=4, wins=8)
    with open_client(config) as client:
        return judge_ties(
            eval_set,
            outputs,
            JudgeModel(MODEL, Endpoint(client, MODEL, wait_s=0, role="judge"), folder, 1e9, 100),
        )


def test_any_openai_compatible_endpoint_can_judge(tmp_path: Path) -> None:
    with served(prefers("good")) as (url, requests):
        found = judged_over_http(url, tmp_path)
    assert (found.agreed, found.compared, len(found.outcomes)) == (12, 12, 4)
    path, key, body = requests[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", f"Bearer {KEY}", MODEL)


@pytest.mark.parametrize(
    ("status", "cause"), [(503, "the judge answered with status 503"), (401, "LOOPWRIGHT_TRAINER_JUDGE_*")]
)
def test_endpoint_that_refuses_is_reported(status: int, cause: str, tmp_path: Path) -> None:
    with served(prefers("good"), status) as (url, _):
        found = judged_over_http(url, tmp_path)
    assert found.outcomes == {}
    assert cause in found.problem


def test_endpoint_that_is_gone_is_reported(tmp_path: Path) -> None:
    with served(prefers("good")) as (url, _):
        pass
    assert "the judge cannot be reached" in judged_over_http(url, tmp_path).problem


def test_judge_needs_the_name_of_its_model() -> None:
    with pytest.raises(ValidationError, match="LOOPWRIGHT_TRAINER_JUDGE_MODEL"):
        TrainerSettings(judge_url="http://model.example/v1")
