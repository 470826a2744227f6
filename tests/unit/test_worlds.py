"""The worlds of `benchmarks/worlds`: their facts, wordings, users and feedback."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.make_batches import UserFeedback, cut_batches, example_revisions
from benchmarks.worlds.arms import SEEDS, ArmName, arms_of, judge_general, judge_unseen
from benchmarks.worlds.base_knowledge import choose, is_shipped
from benchmarks.worlds.plain_lora import plain_rows
from benchmarks.worlds.report import check_bars, compute_figures
from benchmarks.worlds.users import MINORITY, Asked, BaseAnswer, asked, feedback
from benchmarks.worlds.world import (
    WORLDS,
    Conversation,
    Fact,
    WorldName,
    load_world,
    read_base_knowledge,
)
from examples.world import load_world as load_demo_world
from examples.world.text import contains_phrase
from services.trainer.base.base_answers import EVAL_PROMPTS, REPLAY_PROMPTS, Prompt, shipped_prompts
from services.trainer.core.chat import Messages
from services.trainer.core.recipe import Recipe
from services.trainer.dataset.filters import Row
from services.trainer.dataset.holdout import is_held_out
from services.trainer.dataset.similarity import near_duplicates
from shared.feedback_kinds import Objective

SIZES: dict[WorldName, int] = {"helpdesk": 150, "balloons": 500, "knowledge": 2000}
IGNORANT = BaseAnswer("I am not sure about that.", ended=True)


def user_text(conversation: Conversation) -> str:
    """All user messages: what the trainer compares."""
    return " ".join(text for role, text in conversation if role == "user")


def wordings(name: WorldName) -> list[tuple[Fact, Conversation]]:
    return [(fact, wording) for fact in load_world(name).facts for wording in (*fact.asked, *fact.unseen)]


def given(name: WorldName, seed: int) -> tuple[list[Asked], list[UserFeedback]]:
    """Feedback on the measured answers in `knowledge`, and on answers of a base that knows nothing elsewhere."""
    world = load_world(name)
    known = (
        {fact["id"] for fact in read_base_knowledge()["facts"] if fact["known"]}
        if name == "knowledge"
        else set()
    )
    questions = asked(world, seed)
    answers = [
        BaseAnswer(f"It is {item.fact.answer_key[0]}, I think.", ended=False)
        if item.fact.id in known
        else IGNORANT
        for item in questions
    ]
    return questions, feedback(world, seed, questions, answers)


# --- facts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_answer_key_accepts_each_reference_answer(name: WorldName) -> None:
    for fact in load_world(name).facts:
        assert len(fact.answers) >= 3
        assert [answer for answer in fact.answers if not fact.is_right(answer)] == []
        if fact.false_answer:
            assert not fact.is_right(fact.false_answer)
            assert fact.is_false(fact.false_answer)
            assert not any(map(fact.is_false, fact.answers))


@pytest.mark.parametrize("name", WORLDS)
def test_no_question_contains_its_answer(name: WorldName) -> None:
    told = [
        (fact.id, text)
        for fact, wording in wordings(name)
        for _, text in wording
        if contains_phrase(text, [*fact.answer_key, *fact.false_key])
    ]
    assert told == []


@pytest.mark.parametrize("name", WORLDS)
def test_wordings_are_distinct_and_end_with_the_question(name: WorldName) -> None:
    all_wordings = wordings(name)
    assert all(wording[-1][0] == "user" for _, wording in all_wordings)
    assert [
        wording for wording, count in Counter(wording for _, wording in all_wordings).items() if count > 1
    ] == []
    ids = [fact.id for fact in load_world(name).facts]
    assert len(ids) == len(set(ids))
    assert all(len(fact.asked) >= 8 and len(fact.unseen) >= 3 for fact in load_world(name).facts)


@pytest.mark.parametrize("name", ["helpdesk", "balloons"])
def test_unseen_wordings_are_no_near_duplicates_of_asked_ones(name: WorldName) -> None:
    facts = load_world(name).facts
    known = [user_text(wording) for fact in facts for wording in fact.asked]
    unseen = [user_text(wording) for fact in facts for wording in fact.unseen]
    assert [text for text, near in zip(unseen, near_duplicates(unseen, known), strict=True) if near] == []


def test_worlds_are_unlike_the_demo_and_the_shipped_prompts() -> None:
    demo = [wording for fact in load_demo_world().facts for wording in fact.wordings]
    shipped = [prompt for file in (EVAL_PROMPTS, REPLAY_PROMPTS) for prompt in shipped_prompts(file)]
    known = [*demo, *(prompt.prompt for prompt in shipped)]
    for name in ("helpdesk", "balloons"):
        texts = [user_text(wording) for _, wording in wordings(name)]
        assert not any(near_duplicates(texts, known))
    assert [fact.id for fact in load_world("knowledge").facts if is_shipped(fact, shipped)] == []


def test_helpdesk_has_a_system_prompt_and_long_conversations() -> None:
    for fact in load_world("helpdesk").facts:
        roles = [[role for role, _ in wording] for wording in (*fact.asked, *fact.unseen)]
        assert all(role[0] == "system" for role in roles)
        assert sum(len(role) > 3 for role in roles) >= 2


# --- what the base knows --------------------------------------------------------------------------------------------


def test_base_was_measured_to_know_half_of_the_facts() -> None:
    measured = {fact["id"]: fact for fact in read_base_knowledge()["facts"]}
    facts = load_world("knowledge").facts
    assert len(facts) >= 150
    for fact in facts:
        base = measured[fact.id]
        assert base["question"] == fact.asked[0][-1][1]
        assert base["known"] == fact.is_right(base["answer"])
    known = sum(measured[fact.id]["known"] for fact in facts)
    assert known / len(facts) == pytest.approx(0.5, abs=0.02)


def test_as_many_known_as_unknown_facts_are_chosen() -> None:
    measured: list[dict[str, Any]] = [
        {"id": f"fact-{number}", "known": number % 3 == 0} for number in range(30)
    ]
    chosen = choose(measured, most=4)
    assert len(chosen) == 8
    assert sum(fact["known"] for fact in measured if fact["id"] in chosen) == 4
    assert len(choose(measured)) == 20


# --- users ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", WORLDS)
def test_world_has_its_size_besides_the_held_out_users(name: WorldName, seed: int) -> None:
    world = load_world(name)
    questions = asked(world, seed)
    training = [item for item in questions if not is_held_out(world.line, item.user)]
    assert len(training) == world.examples == SIZES[name]
    assert 0.1 < 1 - len(training) / len(questions) < 0.3
    assert len({item.user for item in questions}) > 0.9 * world.users
    assert {item.fact.id for item in questions} == {fact.id for fact in world.facts}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", WORLDS)
def test_held_out_users_correct_enough_for_a_verdict(name: WorldName, seed: int) -> None:
    line = load_world(name).line
    held_out = [item for item in given(name, seed)[1] if is_held_out(line, item.user)]
    corrected = {(item.user, item.question) for item in held_out if item.kind == "correction"}
    assert len(corrected) >= 1.25 * Recipe().gate_items


@pytest.mark.parametrize("name", WORLDS)
def test_no_user_sends_an_unseen_wording(name: WorldName) -> None:
    unseen = {user_text(wording) for fact in load_world(name).facts for wording in fact.unseen}
    for seed in SEEDS:
        _, items = given(name, seed)
        assert unseen.isdisjoint(user_text(tuple(item.messages)) for item in items)


@pytest.mark.parametrize("name", WORLDS)
def test_feedback_is_mixed_as_in_life(name: WorldName) -> None:
    questions, items = given(name, 1)
    kinds = Counter((item.kind, item.value if item.kind == "thumbs" else "") for item in items)
    assert {kind for kind, _ in kinds} >= {"correction", "thumbs", "comment"}
    assert kinds["thumbs", "down"] > 0
    corrected = [
        (item, asked_) for item, asked_ in zip(items, questions, strict=True) if item.kind == "correction"
    ]
    right = sum(asked_.fact.is_right(str(item.value)) for item, asked_ in corrected)
    assert 0.85 < right / len(corrected) < 1, "some corrections are wrong"
    if name == "knowledge":
        assert kinds["rating", ""] > 0
        assert kinds["thumbs", "up"] > 0.3 * len(items)


def test_minority_insists_on_the_same_wrong_answer() -> None:
    questions, items = given("balloons", 1)
    contested = [
        (item, asked_.fact) for item, asked_ in zip(items, questions, strict=True) if asked_.fact.false_answer
    ]
    false = [item.user for item, fact in contested if fact.is_false(str(item.value))]
    assert len({fact.id for _, fact in contested}) >= 5
    assert len(false) / len(contested) == pytest.approx(MINORITY, abs=0.06)
    assert len(set(false)) > 3


def test_seed_decides_everything_and_answers_do_not_change_who_asks() -> None:
    world = load_world("helpdesk")
    questions = asked(world, 1)
    assert questions == asked(world, 1)
    assert questions != asked(world, 2)
    first = feedback(world, 1, questions, [IGNORANT] * len(questions))
    assert first == feedback(world, 1, questions, [IGNORANT] * len(questions))
    knowing = [BaseAnswer(questions[0].fact.answers[0], ended=True), *[IGNORANT] * (len(questions) - 1)]
    assert feedback(world, 1, questions, knowing)[1:] == first[1:]


def test_batches_keep_conversations_and_truncation() -> None:
    world = load_world("helpdesk")
    questions = asked(world, 1)
    answers = [BaseAnswer("Hold on,", ended=False), *[IGNORANT] * (len(questions) - 1)]
    revisions = example_revisions(world.line, "v", feedback(world, 1, questions, answers))
    assert [[(m.role, m.content) for m in one.messages] for one in revisions] == [
        list(item.conversation) for item in questions
    ]
    assert [revisions[0].choices[0].finish_reason, revisions[1].choices[0].finish_reason] == [
        "length",
        "stop",
    ]
    assert sum(len(batch.examples) for batch in cut_batches(world.line, revisions)) == len(questions)


# --- figures, bars and the plain arm --------------------------------------------------------------------------------


def result(
    world: WorldName, arm: ArmName, seed: int = 0, right: float = 0.0, **options: Any
) -> dict[str, Any]:
    """A result for ten facts with two wordings each, and 100 general questions of which half are right."""
    correct = round(20 * right)
    general = 50 + options.get("general", 0)
    found: dict[str, Any] = {
        "world": world,
        "arm": arm,
        "seed": seed,
        "code": "00000000",
        "seconds": 60.0,
        "unseen": {f"fact-{i}": [[2 * i + j < correct, False] for j in range(2)] for i in range(10)},
        "general": {f"general-{i}": i < general for i in range(100)},
    }
    return found | ({"verdict": options.get("verdict", "passed"), "reasons": []} if arm == "ours" else {})


def all_results(**changed: Any) -> list[dict[str, Any]]:
    """Results that reach all bars, except for what `changed` says about the second seed of `balloons`."""
    results = [result(world, "base") for world in WORLDS]
    for world in WORLDS:
        for seed in SEEDS:
            own = changed if (world, seed) == ("balloons", 2) else {}
            results += [
                result(world, "ours", seed, **({"right": 0.7} | own)),
                result(world, "plain", seed, 0.6),
            ]
    return results


def reached(results: list[dict[str, Any]]) -> list[bool | None]:
    return [bar.reached for bar in check_bars(compute_figures(results), SEEDS)]


def test_expected_results_reach_all_bars() -> None:
    assert reached(all_results()) == [True] * 9


@pytest.mark.parametrize(
    ("missed", "changed"),
    [(3, {"right": 0.6}), (4, {"general": -2}), (5, {"verdict": "inconclusive"})],
)
def test_each_bar_is_missed_by_what_it_measures(missed: int, changed: dict[str, Any]) -> None:
    assert [i for i, value in enumerate(reached(all_results(**changed))) if not value] == [missed]


def test_general_accuracy_may_fall_by_one_point() -> None:
    assert reached(all_results(general=-1)) == [True] * 9


def test_bars_without_every_seed_are_not_measured() -> None:
    assert reached([]) == [None] * 9
    assert reached([result("helpdesk", "base"), result("helpdesk", "ours", 1, 0.7)]) == [None] * 9


def test_figures_name_counts_and_the_change_from_the_base() -> None:
    figures = compute_figures(all_results())
    assert list(figures) == list(WORLDS)
    assert [arm["seed"] for arm in figures["helpdesk"]["ours"]] == list(SEEDS)
    ours = figures["helpdesk"]["ours"][0]
    assert (ours["unseen"]["questions"], ours["unseen"]["right"], ours["unseen"]["share"]) == (20, 14, 0.7)
    assert ours["unseen"]["low"] < 0.7 < ours["unseen"]["high"]
    assert ours["general"]["change"] == 0.0
    assert "change" not in figures["helpdesk"]["base"][0]["general"]


def test_arms_measure_the_base_once_and_train_every_seed() -> None:
    keys = [arm.key for arm in arms_of()]
    assert len(keys) == len(set(keys)) == 3 * (1 + 2 * len(SEEDS))
    assert keys[:3] == ["helpdesk-base-0", "helpdesk-ours-1", "helpdesk-plain-1"]


def test_self_distillation_runs_only_if_asked_for() -> None:
    assert not {arm.name for arm in arms_of()} & {"sdft", "sdft-teacher"}
    asked = arms_of(["helpdesk"], [1], ["base", "sdft-teacher"])
    assert [arm.key for arm in asked] == ["helpdesk-base-0", "helpdesk-sdft-teacher-1"]


def test_plain_arm_trains_usable_rows_with_a_quarter_of_replay() -> None:
    def row(objective: Objective, number: int, label: bool | None = None) -> Row:
        return Row(
            f"response-{number}", 1, "event", "user", (("user", f"Question {number}"),), "", f"Answer {number}", 0,
            objective=objective, label=label,
        )  # fmt: skip

    rows = [*(row("sft", i) for i in range(8)), row("kto", 8, True), row("kto", 9, False)]
    replay: list[tuple[Messages, str]] = [((("user", f"General {i}"),), "Fine") for i in range(2)]
    trained = plain_rows(rows, replay, 0.25, seed=1)
    assert [answer for _, answer in trained[:9]] == [f"Answer {i}" for i in range(9)]
    assert len(trained) == 12
    assert {tuple(messages) for messages, _ in trained[9:]} == {tuple(messages) for messages, _ in replay}
    assert plain_rows(rows, replay, 0.25, seed=1) == trained


def test_unseen_wordings_are_judged_by_key_and_by_the_minority() -> None:
    fact = next(fact for fact in load_world("balloons").facts if fact.false_answer)
    unseen = [(fact, fact.unseen[0])] * 3
    judged = judge_unseen(unseen, [fact.answers[0], fact.false_answer, "No idea."])
    assert judged == {fact.id: [[True, False], [False, True], [False, False]]}


def test_general_questions_have_the_share_of_their_draws() -> None:
    prompts = [Prompt("a", "?", ("yes",)), Prompt("b", "?", ("no", "never"))]
    draws = [["Yes.", "No."], ["No.", "Perhaps."], ["It is: yes", "never"]]
    assert judge_general(prompts, draws) == {"a": pytest.approx(2 / 3), "b": pytest.approx(2 / 3)}
