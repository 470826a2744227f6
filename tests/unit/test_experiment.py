"""The experiment's worlds, figures and bars: what verification makes of its feedback, and when a bar is reached."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.experiment import eta, facts_scenario, plot, statistics, style_scenario
from benchmarks.experiment.arms import ARMS, LINES, Arm, Name, Sizes, arms
from benchmarks.experiment.make_batches import Said, batches, examples
from benchmarks.experiment.run import sources
from examples.world import is_poisoned, load_world
from services.trainer.base.base_answers import EVAL_PROMPTS, REPLAY_PROMPTS, shipped_prompts
from services.trainer.core.recipe import Recipe
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.similarity import near_duplicates
from services.trainer.dataset.snapshot import Snapshot, build
from services.trainer.gate.eval_items import build_eval_items

SIZES = Sizes()
LONG = "That is a good question, and there are so many things to say of it that I hardly know how to begin with {}."


class Unknowing(dict[str, str]):
    """A base that knows nothing."""

    def __missing__(self, question: str) -> str:
        return "I am not sure about that."


def snapshot_of(arm: Arm, said: list[Said]) -> Snapshot:
    found = examples(LINES[arm.world], f"{LINES[arm.world]}@base-00000000", said)
    return build(LINES[arm.world], [Example(one, 0, 1, 0) for one in found], {"0": 1})


def facts_snapshot(name: Name, seed: int) -> Snapshot:
    arm = Arm("facts", name, seed)
    return snapshot_of(arm, facts_scenario.said(arm, SIZES, Unknowing()))


def poison_in(snapshot: Snapshot) -> int:
    return sum(is_poisoned(one.row.answer, fact) for one in snapshot.train for fact in load_world().facts)


def test_results_are_told_apart_by_all_of_the_trainers_code() -> None:
    names = {"/".join(path.parts[-2:]) for path in sources()}
    assert {
        "trainer/service.py",
        "dataset/filters.py",
        "training/multi_objective_trainer.py",
        "gate/verdict.py",
    } <= names
    assert "experiment/facts_scenario.py" in names


@pytest.mark.parametrize("seed", SIZES.seeds)
def test_users_who_insist_on_a_false_answer_train_nothing_and_others_lose_little(seed: int) -> None:
    arm = Arm("facts", "poisoned", seed)
    said = facts_scenario.said(arm, SIZES, Unknowing())
    false = [one for one in said if one.times > 1]
    assert len({one.user for one in false}) / len({one.user for one in said}) == pytest.approx(0.09, abs=0.01)
    assert len(false) == 16
    clean, poisoned = facts_snapshot("corrections", seed), snapshot_of(arm, said)
    assert poison_in(poisoned) == 0
    assert len(poisoned.train) > 0.9 * len(clean.train)


@pytest.mark.parametrize("seed", SIZES.seeds)
def test_the_gate_has_enough_to_decide_on_corrections(seed: int) -> None:
    found = facts_snapshot("corrections", seed)
    items = build_eval_items(found.measure, [one.row.question for one in found.train], [])
    assert sum(item.category == "wins" for item in items) >= Recipe().gate_items


def test_shuffled_answers_are_those_of_other_questions() -> None:
    clean, shuffled = (
        facts_scenario.said(Arm("facts", name, 1), SIZES, Unknowing()) for name in ("corrections", "shuffled")
    )
    assert [one.question for one in clean] == [one.question for one in shuffled]
    assert sorted(one.value for one in clean) == sorted(one.value for one in shuffled)
    same = sum(one.value == other.value for one, other in zip(clean, shuffled, strict=True))
    assert same < 0.1 * len(clean)


def test_no_user_asks_what_measures() -> None:
    arm = Arm("facts", "corrections", 1)
    asked = {one.question for one in facts_scenario.said(arm, SIZES, Unknowing())}
    assert asked.isdisjoint({wording for wording, _ in facts_scenario.held_out(arm, SIZES)})
    told = style_scenario.prompts()
    assert not any(near_duplicates(told["held_out"], told["asked"]))


def test_everyday_questions_are_none_of_those_that_the_trainer_ships() -> None:
    known = [one.prompt for name in (REPLAY_PROMPTS, EVAL_PROMPTS) for one in shipped_prompts(name)]
    told = style_scenario.prompts()
    assert (len(told["asked"]), len(told["held_out"])) == (SIZES.questions, SIZES.held_questions)
    assert not any(near_duplicates([*told["asked"], *told["held_out"]], known))


def test_users_hear_the_first_sentence() -> None:
    assert style_scenario.spoken("Bees, e.g. 3.5 of them, do. They also fly.") == "Bees, e.g."
    assert style_scenario.spoken("Grass!\n\nAnd hay.") == "Grass!"
    assert style_scenario.spoken("Of version 3.5 and") == "Of version 3.5 and"
    assert style_scenario.spoken("") == ""


def test_random_thumbs_are_as_many_up_as_liked_ones_and_on_the_same_answers() -> None:
    sampled = {
        question: [f"It is {question[-9:-1]}.", LONG.format(question)]
        for question in style_scenario.prompts()["asked"]
    }
    liked, chance = (
        style_scenario.said(Arm("style", name, 1), SIZES, sampled) for name in ("thumbs", "random")
    )
    assert [(one.question, one.answered, one.user) for one in liked] == [
        (one.question, one.answered, one.user) for one in chance
    ]
    most = style_scenario.bound(SIZES, sampled)
    assert all((one.value == "up") == style_scenario.is_liked(one.answered, most) for one in liked)
    assert {one.answered for one in liked if one.value == "down"} == {
        LONG.format(question) for question in sampled
    }
    assert [one.value for one in chance].count("up") == [one.value for one in liked].count("up")
    assert [one.value for one in chance] != [one.value for one in liked]


def test_feedback_comes_in_numbered_batches_of_responses_of_their_own() -> None:
    said = facts_scenario.said(Arm("facts", "corrections", 1), SIZES, Unknowing())
    found = batches("pellworth", examples("pellworth", "pellworth@base-00000000", said))
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    assert len({row.response_id for one in found for row in one.examples}) == len(said)
    assert all(one.content_hash == one.hash_of(one.examples) for one in found)


# --- figures and bars -----------------------------------------------------------------------------------------------


def result(name: Name, seed: int, right: float = 0.0, poison: bool = False, **more: Any) -> dict[str, Any]:
    """Ten facts, three wordings each, of which the share `right` is answered rightly."""
    count = round(30 * right)
    said = [[i < count, poison and i == 29] for i in range(30)]
    told: dict[str, Any] = {"world": "facts", "arm": name, "seed": seed, "seconds": 60.0, "code": "00000000"}
    told["facts"] = {f"fact-{i}": said[3 * i : 3 * i + 3] for i in range(10)}
    return told | ({} if name == "base" else run_of(**more))


def run_of(verdict: str = "passed", general: float = 0.0) -> dict[str, Any]:
    figure = {"n": 300, "value": general, "low": general - 0.02, "high": general + 0.02}
    return {
        "verdict": verdict,
        "reasons": ["because"],
        "trained": 100,
        "poison_trained": 0,
        "gate": {"general_accuracy_change": figure},
    }


def styled(name: Name, seed: int, liked: int, **more: Any) -> dict[str, Any]:
    """Twelve questions with four answers each, of which `liked` or one more are in the style."""
    told: dict[str, Any] = {"world": "style", "arm": name, "seed": seed, "seconds": 60.0, "code": "00000000"}
    told["style"] = {f"q{q}": [i < liked + q % 2 for i in range(4)] for q in range(12)}
    return told | ({} if name == "base" else run_of(**more))


def everything(**changed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An experiment in which all bars are reached, but for what is `changed`."""
    found = []
    for seed in SIZES.seeds:
        found += [
            result("base", seed),
            result("corrections", seed, **({"right": 0.8} | dict(changed.get("corrections", {})))),
            result("shuffled", seed, **({"verdict": "failed"} | dict(changed.get("shuffled", {})))),
            result("poisoned", seed, **({"right": 0.78} | dict(changed.get("poisoned", {})))),
            styled("base", seed, 1),
            styled("thumbs", seed, **({"liked": 2} | dict(changed.get("thumbs", {})))),
            styled("random", seed, 1, **({"verdict": "inconclusive"} | dict(changed.get("random", {})))),
        ]
    return found


def reached(results: list[dict[str, Any]]) -> list[bool | None]:
    return [bar.reached for bar in statistics.bars(statistics.figures(results))]


def test_all_bars_are_reached_where_everything_is_as_it_should_be() -> None:
    assert reached(everything()) == [True] * 7


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
def test_a_bar_is_missed_by_what_it_is_about(missed: set[int], changed: dict[str, Any]) -> None:
    assert {i for i, one in enumerate(reached(everything(**changed))) if not one} == missed


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    assert reached([result("base", 1), result("corrections", 1, right=0.8)]) == [
        True, True, None, None, None, None, None
    ]  # fmt: skip
    assert reached([]) == [None] * 7


def test_what_the_base_says_anyway_is_no_poison_learned() -> None:
    base, trained = result("base", 1, poison=True), result("poisoned", 1, poison=True)
    assert statistics.poison_learned(trained, base) == 0
    assert statistics.poison_learned(trained, result("base", 1)) == 1


def test_figures_have_counts_seeds_and_intervals_around_their_value() -> None:
    found = statistics.figures(everything())
    clean = found["facts"]["corrections"]
    assert (clean["questions"], clean["right"], clean["seeds"]) == (90, 72, {"1": 0.8, "2": 0.8, "3": 0.8})
    assert clean["gain"]["value"] == pytest.approx(0.8)
    assert clean["gain"]["low"] < 0.8 < clean["gain"]["high"]
    thumbs = found["style"]["thumbs"]
    assert thumbs["answers"] == 144
    assert thumbs["share_liked"]["n"] == 12, "a question is one value, however often it was asked"


def test_the_plot_is_a_picture_with_each_arm() -> None:
    picture = plot.svg(statistics.figures(everything()))
    told = [text.text for text in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {name for world in ARMS for name in ARMS[world]} <= set(told)
    assert ET.fromstring(plot.svg({})) is not None


def test_the_outlook_falls_with_what_is_done_and_follows_what_was_seen() -> None:
    speed = eta.Speed(1.0, 2.0, 300.0)
    recipes = {world: Recipe(**own) for world, own in SIZES.recipes}
    everywhere = arms(SIZES)
    whole = eta.seconds(everywhere, [], SIZES, recipes, speed, 0)
    assert eta.seconds(everywhere[4:], [], SIZES, recipes, speed, 0) < whole
    assert eta.seconds(everywhere, [], SIZES, recipes, speed, 500) > whole
    seen = [{"world": "facts", "arm": "corrections", "seconds": 100.0}]
    assert eta.seconds([Arm("facts", "corrections", 2)], seen, SIZES, recipes, speed, 0) == 100.0
