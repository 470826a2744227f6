"""The experiment: its scenarios, what the trainer's checks make of their feedback, its figures and bars."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.experiment import eta, facts_scenario, plot, statistics, style_scenario
from benchmarks.experiment.arms import ARMS, LINES, Arm, ArmName, Sizes, all_arms
from benchmarks.experiment.run import PACKAGE
from benchmarks.make_batches import UserFeedback, cut_batches, example_revisions
from benchmarks.resumable import source_files
from examples.world import is_poisoned, load_world
from services.trainer.base.base_answers import EVAL_PROMPTS, REPLAY_PROMPTS, shipped_prompts
from services.trainer.core.recipe import Recipe
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.similarity import near_duplicates
from services.trainer.dataset.snapshot import build
from services.trainer.dataset.snapshot_files import Snapshot
from services.trainer.gate.eval_items import build_eval_items
from tests.trainer_factories import LINE

SIZES = Sizes()
LONG = "That is a good question, and there are so many things to say of it that I hardly know how to begin with {}."


class IgnorantBase(dict[str, str]):
    """Answers of a base that knows nothing."""

    def __missing__(self, question: str) -> str:
        return "I am not sure about that."


def snapshot_of(arm: Arm, feedback: list[UserFeedback]) -> Snapshot:
    line = LINES[arm.scenario]
    revisions = example_revisions(line, f"{line}@base-00000000", feedback)
    return build(line, [Example(revision, 0, 1, 0) for revision in revisions], {"0": 1})


def facts_snapshot(name: ArmName, seed: int) -> Snapshot:
    arm = Arm("facts", name, seed)
    return snapshot_of(arm, facts_scenario.simulate_feedback(arm, SIZES, IgnorantBase()))


def poisoned_rows(snapshot: Snapshot) -> int:
    facts = load_world().facts
    return sum(is_poisoned(grouped.row.answer, fact) for grouped in snapshot.train for fact in facts)


def test_code_digest_covers_all_of_the_trainer() -> None:
    names = {"/".join(path.parts[-2:]) for path in source_files(PACKAGE)}
    assert {
        "trainer/service.py",
        "dataset/filters.py",
        "training/trainer.py",
        "gate/verdict.py",
    } <= names
    assert "experiment/facts_scenario.py" in names


@pytest.mark.parametrize("seed", SIZES.seeds)
def test_poisoners_train_nothing_and_others_lose_little(seed: int) -> None:
    arm = Arm("facts", "poisoned", seed)
    feedback = facts_scenario.simulate_feedback(arm, SIZES, IgnorantBase())
    false = [item for item in feedback if item.times > 1]
    users = {item.user for item in feedback}
    assert len({item.user for item in false}) / len(users) == pytest.approx(0.09, abs=0.01)
    assert len(false) == 16
    clean, poisoned = facts_snapshot("corrections", seed), snapshot_of(arm, feedback)
    assert poisoned_rows(poisoned) == 0
    assert len(poisoned.train) > 0.9 * len(clean.train)


@pytest.mark.parametrize("seed", SIZES.seeds)
def test_corrections_give_the_gate_enough_items(seed: int) -> None:
    snapshot = facts_snapshot("corrections", seed)
    items = build_eval_items(
        LINE, snapshot.heldout, [grouped.row.question for grouped in snapshot.train], []
    ).corrections
    assert sum(item.category == "wins" for item in items) >= Recipe().gate_items


def test_shuffled_corrections_answer_other_questions() -> None:
    names: tuple[ArmName, ...] = ("corrections", "shuffled")
    clean, shuffled = (
        facts_scenario.simulate_feedback(Arm("facts", name, 1), SIZES, IgnorantBase()) for name in names
    )
    assert [item.question for item in clean] == [item.question for item in shuffled]
    assert sorted(item.value for item in clean) == sorted(item.value for item in shuffled)
    same = sum(item.value == other.value for item, other in zip(clean, shuffled, strict=True))
    assert same < 0.1 * len(clean)


def test_no_user_asks_a_held_out_question() -> None:
    arm = Arm("facts", "corrections", 1)
    asked = {item.question for item in facts_scenario.simulate_feedback(arm, SIZES, IgnorantBase())}
    assert asked.isdisjoint({wording for wording, _ in facts_scenario.held_out_questions(arm, SIZES)})
    prompts = style_scenario.prompts()
    assert not any(near_duplicates(prompts["held_out"], prompts["asked"]))


def test_everyday_questions_are_not_among_the_shipped_prompts() -> None:
    shipped = [prompt.prompt for name in (REPLAY_PROMPTS, EVAL_PROMPTS) for prompt in shipped_prompts(name)]
    prompts = style_scenario.prompts()
    assert (len(prompts["asked"]), len(prompts["held_out"])) == (SIZES.questions, SIZES.held_questions)
    assert not any(near_duplicates([*prompts["asked"], *prompts["held_out"]], shipped))


def test_assistant_speaks_the_first_sentence() -> None:
    assert style_scenario.first_sentence("Bees, e.g. 3.5 of them, do. They also fly.") == "Bees, e.g."
    assert style_scenario.first_sentence("Grass!\n\nAnd hay.") == "Grass!"
    assert style_scenario.first_sentence("Of version 3.5 and") == "Of version 3.5 and"
    assert style_scenario.first_sentence("") == ""


def test_random_thumbs_judge_the_same_answers_as_often_up() -> None:
    sampled = {
        question: [f"It is {question[-9:-1]}.", LONG.format(question)]
        for question in style_scenario.prompts()["asked"]
    }
    names: tuple[ArmName, ...] = ("thumbs", "random")
    liked, control = (
        style_scenario.simulate_feedback(Arm("style", name, 1), SIZES, sampled) for name in names
    )
    assert [(item.question, item.answer, item.user) for item in liked] == [
        (item.question, item.answer, item.user) for item in control
    ]
    max_words = style_scenario.max_liked_words(SIZES, sampled)
    assert all((item.value == "up") == style_scenario.is_liked(item.answer, max_words) for item in liked)
    assert {item.answer for item in liked if item.value == "down"} == {
        LONG.format(question) for question in sampled
    }
    assert [item.value for item in control].count("up") == [item.value for item in liked].count("up")
    assert [item.value for item in control] != [item.value for item in liked]


def test_feedback_is_cut_into_numbered_batches() -> None:
    feedback = facts_scenario.simulate_feedback(Arm("facts", "corrections", 1), SIZES, IgnorantBase())
    batches = cut_batches("pellworth", example_revisions("pellworth", "pellworth@base-00000000", feedback))
    assert [batch.number for batch in batches] == list(range(1, len(batches) + 1))
    assert len({row.response_id for batch in batches for row in batch.examples}) == len(feedback)
    assert all(batch.content_hash == batch.hash_of(batch.examples) for batch in batches)


# --- figures and bars -----------------------------------------------------------------------------------------------


def facts_result(
    name: ArmName, seed: int, right: float = 0.0, poison: bool = False, **options: Any
) -> dict[str, Any]:
    """A result for ten facts with three wordings each, of which the share `right` is answered correctly."""
    count = round(30 * right)
    answers = [[i < count, poison and i == 29] for i in range(30)]
    result: dict[str, Any] = {
        "world": "facts",
        "arm": name,
        "seed": seed,
        "seconds": 60.0,
        "code": "00000000",
    }
    result["facts"] = {f"fact-{i}": answers[3 * i : 3 * i + 3] for i in range(10)}
    return result | ({} if name == "base" else run_summary(**options))


def run_summary(verdict: str = "passed", general: float = 0.0) -> dict[str, Any]:
    figure = {"n": 300, "value": general, "low": general - 0.02, "high": general + 0.02}
    return {
        "verdict": verdict,
        "reasons": ["because"],
        "trained": 100,
        "poison_trained": 0,
        "gate": {"general_accuracy_change": figure},
    }


def style_result(name: ArmName, seed: int, liked: int, **options: Any) -> dict[str, Any]:
    """A result for twelve questions with four answers each, of which `liked` or one more are in the style."""
    result: dict[str, Any] = {
        "world": "style",
        "arm": name,
        "seed": seed,
        "seconds": 60.0,
        "code": "00000000",
    }
    result["style"] = {f"q{q}": [i < liked + q % 2 for i in range(4)] for q in range(12)}
    return result | ({} if name == "base" else run_summary(**options))


def all_results(**changed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An experiment that reaches all bars, except for what `changed` gives by arm."""
    results = []
    for seed in SIZES.seeds:
        results += [
            facts_result("base", seed),
            facts_result("corrections", seed, **({"right": 0.8} | dict(changed.get("corrections", {})))),
            facts_result("shuffled", seed, **({"verdict": "failed"} | dict(changed.get("shuffled", {})))),
            facts_result("poisoned", seed, **({"right": 0.78} | dict(changed.get("poisoned", {})))),
            style_result("base", seed, 1),
            style_result("thumbs", seed, **({"liked": 2} | dict(changed.get("thumbs", {})))),
            style_result(
                "random", seed, 1, **({"verdict": "inconclusive"} | dict(changed.get("random", {})))
            ),
        ]
    return results


def reached(results: list[dict[str, Any]]) -> list[bool | None]:
    return [bar.reached for bar in statistics.check_bars(statistics.compute_figures(results))]


def test_expected_results_reach_all_bars() -> None:
    assert reached(all_results()) == [True] * 7


@pytest.mark.parametrize(
    ("missed", "changed"),
    [
        ({0, 5}, {"corrections": {"right": 0.5}, "poisoned": {"right": 0.4}}),
        ({1}, {"corrections": {"right": 0.8, "general": -0.04}}),
        ({2}, {"thumbs": {"liked": 1}}),
        ({3}, {"shuffled": {"verdict": "passed"}}),
        ({4}, {"random": {"verdict": "passed"}}),
        ({5}, {"poisoned": {"right": 0.7}}),
        ({6}, {"poisoned": {"right": 0.78, "poison": True}}),
    ],
)
def test_each_bar_is_missed_by_what_it_measures(missed: set[int], changed: dict[str, Any]) -> None:
    assert {i for i, value in enumerate(reached(all_results(**changed))) if not value} == missed


def test_unmeasured_bars_are_neither_reached_nor_missed() -> None:
    assert reached([facts_result("base", 1), facts_result("corrections", 1, right=0.8)]) == [
        True, True, None, None, None, None, None
    ]  # fmt: skip
    assert reached([]) == [None] * 7


def test_poison_that_the_base_also_answers_was_not_learned() -> None:
    base = facts_result("base", 1, poison=True)
    trained = facts_result("poisoned", 1, poison=True)
    assert statistics.count_learned_poison(trained, base) == 0
    assert statistics.count_learned_poison(trained, facts_result("base", 1)) == 1


def test_figures_have_counts_seeds_and_intervals() -> None:
    figures = statistics.compute_figures(all_results())
    clean = figures["facts"]["corrections"]
    assert (clean["questions"], clean["right"], clean["seeds"]) == (90, 72, {"1": 0.8, "2": 0.8, "3": 0.8})
    assert clean["gain"]["value"] == pytest.approx(0.8)
    assert clean["gain"]["low"] < 0.8 < clean["gain"]["high"]
    thumbs = figures["style"]["thumbs"]
    assert thumbs["answers"] == 144
    assert thumbs["share_liked"]["n"] == 12, "a question is one value, however often it was asked"


def test_plot_is_an_svg_with_each_arm() -> None:
    picture = plot.svg(statistics.compute_figures(all_results()))
    texts = [text.text for text in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {name for scenario in ARMS for name in ARMS[scenario]} <= set(texts)
    assert ET.fromstring(plot.svg({})) is not None


def test_estimate_shrinks_with_progress_and_follows_results() -> None:
    speed = eta.Speed(1.0, 2.0, 300.0)
    recipes = {scenario: Recipe(**own) for scenario, own in SIZES.recipes}
    arms = all_arms(SIZES)
    total = eta.estimate_seconds(arms, [], SIZES, recipes, speed, 0)
    assert eta.estimate_seconds(arms[4:], [], SIZES, recipes, speed, 0) < total
    assert eta.estimate_seconds(arms, [], SIZES, recipes, speed, 500) > total
    done = [{"world": "facts", "arm": "corrections", "seconds": 100.0}]
    assert eta.estimate_seconds([Arm("facts", "corrections", 2)], done, SIZES, recipes, speed, 0) == 100.0
