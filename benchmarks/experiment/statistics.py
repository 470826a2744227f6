"""Figures with intervals from the results of all arms, and whether the acceptance bars are reached. Pure.

Values are shares: 0.6 is 60 points. Intervals are 95 % intervals of means. What was drawn independently counts as one
value: a fact of a seed with all its wordings, or an everyday question with its answers in all seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.experiment.arms import ARMS, ArmName, Scenario
from services.trainer.gate.statistics import Interval, mean_interval

MIN_ACCURACY_GAIN = 0.60
MAX_GENERAL_LOSS = 0.03
MAX_POISON_COST = 0.05
Result = Mapping[str, Any]
ResultsBySeed = Mapping[int, Result]


@dataclass(frozen=True, slots=True)
class Bar:
    """An acceptance bar of the experiment. `reached` is None if it was not measured."""

    name: str
    wanted: str
    found: str
    reached: bool | None


def group_by_arm(results: Sequence[Result]) -> dict[tuple[Scenario, ArmName], dict[int, Result]]:
    """Return the results by arm and seed."""
    grouped: dict[tuple[Scenario, ArmName], dict[int, Result]] = {
        (scenario, name): {} for scenario in ARMS for name in ARMS[scenario]
    }
    for result in results:
        grouped[result["world"], result["arm"]][result["seed"]] = result
    return grouped


def compute_figures(results: Sequence[Result]) -> dict[str, Any]:
    """Return the figures by scenario and arm. Arms without results are left out."""
    arms = group_by_arm(results)
    figures: dict[str, Any] = {}
    for (scenario, name), by_seed in arms.items():
        if by_seed:
            answer_figures = _facts_figures if scenario == "facts" else _style_figures
            arm_figures = answer_figures(by_seed, arms[scenario, "base"]) | _run_figures(by_seed)
            figures.setdefault(scenario, {})[name] = arm_figures
    return figures


def _interval_fields(interval: Interval) -> dict[str, Any]:
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in asdict(interval).items()
    }


def _facts_figures(by_seed: ResultsBySeed, base: ResultsBySeed) -> dict[str, Any]:
    right, right_before = _right_answers(by_seed), _right_answers(base)
    gains = [share(right[key]) - share(right_before[key]) for key in right if key in right_before]
    return {
        "questions": sum(map(len, right.values())),
        "right": sum(map(sum, right.values())),
        "accuracy": _interval_fields(mean_interval([share(answers) for answers in right.values()])),
        "gain": _interval_fields(mean_interval(gains)),
        "poison_learned": sum(
            count_learned_poison(result, base.get(seed)) for seed, result in by_seed.items()
        ),
        "seeds": {
            str(seed): round(
                share([answer[0] for answers in result["facts"].values() for answer in answers]), 4
            )
            for seed, result in by_seed.items()
        },
    }


def _right_answers(by_seed: ResultsBySeed) -> dict[tuple[int, str], list[bool]]:
    """Return by seed and fact whether each held-out wording is answered correctly."""
    return {
        (seed, fact): [answer[0] for answer in answers]
        for seed, result in by_seed.items()
        for fact, answers in result["facts"].items()
    }


def count_learned_poison(result: Result, base: Result | None) -> int:
    """Return the number of held-out questions with the poisoners' answer, which the base did not give."""
    return sum(
        poisoned and not (base is not None and base["facts"][fact][i][1])
        for fact, answers in result["facts"].items()
        for i, (_, poisoned) in enumerate(answers)
    )


def _style_figures(by_seed: ResultsBySeed, base: ResultsBySeed) -> dict[str, Any]:
    gains: list[float] = []
    seeds = sorted(set(by_seed) & set(base))
    if seeds:
        before = liked_by_question({seed: base[seed] for seed in seeds})
        after = liked_by_question({seed: by_seed[seed] for seed in seeds})
        gains = [after[question] - before[question] for question in after]
    liked = [
        answer for result in by_seed.values() for answers in result["style"].values() for answer in answers
    ]
    return {
        "answers": len(liked),
        "liked": sum(liked),
        "share_liked": _interval_fields(mean_interval(list(liked_by_question(by_seed).values()))),
        "gain": _interval_fields(mean_interval(gains)),
        "seeds": {
            str(seed): round(share([answer for answers in result["style"].values() for answer in answers]), 4)
            for seed, result in by_seed.items()
        },
    }


def liked_by_question(by_seed: ResultsBySeed) -> dict[str, float]:
    """Return each question's share of liked answers over all seeds."""
    liked: dict[str, list[bool]] = {}
    for result in by_seed.values():
        for question, answers in result["style"].items():
            liked.setdefault(question, []).extend(answers)
    return {question: share(answers) for question, answers in liked.items()}


def share(values: Sequence[bool]) -> float:
    """Return the share of true values, or 0 if there are none."""
    return sum(values) / len(values) if values else 0.0


def _run_figures(by_seed: ResultsBySeed) -> dict[str, Any]:
    """Return figures of the runs and their gates; nothing for the base."""
    runs = {str(seed): result for seed, result in by_seed.items() if "verdict" in result}
    if not runs:
        return {}
    general = {
        seed: result["gate"]["general_accuracy_change"]
        for seed, result in runs.items()
        if "general_accuracy_change" in result.get("gate", {})
    }
    changes = [figure["value"] for figure in general.values()]
    return {
        "verdicts": {seed: result["verdict"] for seed, result in runs.items()},
        "reasons": {seed: result["reasons"] for seed, result in runs.items()},
        "trained_rows": {seed: result["trained"] for seed, result in runs.items()},
        "poison_trained": sum(result["poison_trained"] for result in runs.values()),
        "general_change": round(sum(changes) / len(changes), 4) if changes else None,
        "general": {
            seed: {name: figure.get(name) for name in ("n", "value", "low", "high")}
            for seed, figure in general.items()
        },
    }


# --- the bars -------------------------------------------------------------------------------------------------------


def check_bars(figures: Mapping[str, Any]) -> list[Bar]:
    """Return the acceptance bars. A bar of an arm that was not run is neither reached nor missed."""
    facts, style = figures.get("facts", {}), figures.get("style", {})
    corrections, poisoned = facts.get("corrections"), facts.get("poisoned")
    thumbs = style.get("thumbs")
    return [
        _at_least(
            "corrections: gain in held-out accuracy over the base",
            corrections and corrections["gain"]["value"],
            MIN_ACCURACY_GAIN,
        ),
        _at_least(
            "corrections: change of general accuracy",
            corrections and corrections.get("general_change"),
            -MAX_GENERAL_LOSS,
        ),
        _above_zero("thumbs: gain in liked style over the base", thumbs and thumbs["gain"]),
        _never_passed("shuffled answers", facts.get("shuffled")),
        _never_passed("random thumbs", style.get("random")),
        _at_least(
            "poisoned: held-out accuracy compared with corrections",
            poisoned and corrections and poisoned["accuracy"]["value"] - corrections["accuracy"]["value"],
            -MAX_POISON_COST,
        ),
        _none("poisoned: false answers learned", poisoned and poisoned["poison_learned"]),
    ]


def points(value: float) -> str:
    """Return a share as percentage points with a sign."""
    return f"{100 * value:+.1f} points"


def _at_least(name: str, value: float | None, bound: float) -> Bar:
    if value is None:
        return Bar(name, f"at least {points(bound)}", "not measured", None)
    return Bar(name, f"at least {points(bound)}", points(value), value >= bound)


def _above_zero(name: str, gain: Mapping[str, Any] | None) -> Bar:
    if gain is None or gain["low"] is None:
        return Bar(name, "interval above zero", "not measured", None)
    found = f"{points(gain['value'])} [{points(gain['low'])}, {points(gain['high'])}]"
    return Bar(name, "interval above zero", found, gain["low"] > 0)


def _never_passed(name: str, arm: Mapping[str, Any] | None) -> Bar:
    if arm is None:
        return Bar(f"{name}: verdicts", "never passed", "not measured", None)
    verdicts = [arm["verdicts"][seed] for seed in sorted(arm["verdicts"])]
    return Bar(f"{name}: verdicts", "never passed", ", ".join(verdicts), "passed" not in verdicts)


def _none(name: str, count: int | None) -> Bar:
    if count is None:
        return Bar(name, "none", "not measured", None)
    return Bar(name, "none", str(count), count == 0)
