"""From the results of all arms to figures with intervals, and to the bars. Pure.

A value is a share: 0.6 is 60 points. Intervals are 95 % ones of means, over what was drawn independently: facts of a
seed, or everyday questions with all seeds together, each as one value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.experiment.arms import ARMS, Name, World
from services.trainer.gate.statistics import Interval, mean_interval

GAIN, GENERAL, POISON_COST = 0.60, 0.03, 0.05
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Arm's name (`base` of the world of facts: `facts base`) -> seed -> its result."""


@dataclass(frozen=True, slots=True)
class Bar:
    """`reached` is None where it was not measured."""

    name: str
    wanted: str
    found: str
    reached: bool | None


def by_arm(results: Sequence[Mapping[str, Any]]) -> dict[tuple[World, Name], dict[int, Mapping[str, Any]]]:
    found: dict[tuple[World, Name], dict[int, Mapping[str, Any]]] = {
        (world, name): {} for world in ARMS for name in ARMS[world]
    }
    for one in results:
        found[one["world"], one["arm"]][one["seed"]] = one
    return found


def figures(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By world and arm. An arm without results is left out."""
    arms = by_arm(results)
    out: dict[str, Any] = {}
    for (world, name), theirs in arms.items():
        if theirs:
            base = arms[world, "base"]
            out.setdefault(world, {})[name] = (_facts if world == "facts" else _style)(theirs, base) | _runs(
                theirs
            )
    return out


def shown(found: Interval) -> dict[str, Any]:
    return {
        name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(found).items()
    }


def _facts(theirs: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    right = {
        (seed, fact): [w[0] for w in said]
        for seed, one in theirs.items()
        for fact, said in one["facts"].items()
    }
    before = {
        (seed, fact): [w[0] for w in said]
        for seed, one in base.items()
        for fact, said in one["facts"].items()
    }
    paired = [share(right[key]) - share(before[key]) for key in right if key in before]
    asked = sum(map(len, right.values()))
    return {
        "questions": asked,
        "right": sum(map(sum, right.values())),
        "accuracy": shown(mean_interval([share(said) for said in right.values()])),
        "gain": shown(mean_interval(paired)),
        "poison_learned": sum(poison_learned(one, base.get(seed)) for seed, one in theirs.items()),
        "seeds": {
            str(seed): round(share([w[0] for said in one["facts"].values() for w in said]), 4)
            for seed, one in theirs.items()
        },
    }


def poison_learned(one: Mapping[str, Any], base: Mapping[str, Any] | None) -> int:
    """Held-out questions answered with what poisoners say, where the base did not."""
    return sum(
        wrong and not (base is not None and base["facts"][fact][i][1])
        for fact, said in one["facts"].items()
        for i, (_, wrong) in enumerate(said)
    )


def _style(theirs: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    shares, gains = of_questions(theirs), []
    seeds = sorted(set(theirs) & set(base))
    if seeds:
        before = of_questions({seed: base[seed] for seed in seeds})
        after = of_questions({seed: theirs[seed] for seed in seeds})
        gains = [after[question] - before[question] for question in after]
    answers = [liked for one in theirs.values() for said in one["style"].values() for liked in said]
    return {
        "answers": len(answers),
        "liked": sum(answers),
        "share_liked": shown(mean_interval(list(shares.values()))),
        "gain": shown(mean_interval(gains)),
        "seeds": {
            str(seed): round(share([liked for said in one["style"].values() for liked in said]), 4)
            for seed, one in theirs.items()
        },
    }


def of_questions(theirs: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """Each question's share of liked answers over all seeds."""
    said: dict[str, list[bool]] = {}
    for one in theirs.values():
        for question, liked in one["style"].items():
            said.setdefault(question, []).extend(liked)
    return {question: share(liked) for question, liked in said.items()}


def share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def _runs(theirs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What the trainer and the gate said of each run; nothing for the base."""
    runs = {str(seed): one for seed, one in theirs.items() if "verdict" in one}
    if not runs:
        return {}
    general = {
        seed: one["gate"]["general_accuracy_change"]
        for seed, one in runs.items()
        if "general_accuracy_change" in one.get("gate", {})
    }
    changes = [figure["value"] for figure in general.values()]
    return {
        "verdicts": {seed: one["verdict"] for seed, one in runs.items()},
        "reasons": {seed: one["reasons"] for seed, one in runs.items()},
        "trained_rows": {seed: one["trained"] for seed, one in runs.items()},
        "poison_trained": sum(one["poison_trained"] for one in runs.values()),
        "general_change": round(sum(changes) / len(changes), 4) if changes else None,
        "general": {
            seed: {name: figure.get(name) for name in ("n", "value", "low", "high")}
            for seed, figure in general.items()
        },
    }


# --- the bars -------------------------------------------------------------------------------------------------------


def bars(found: Mapping[str, Any]) -> list[Bar]:
    """Each with what was found, reached or not; arms that were not run leave theirs open."""
    facts, style = found.get("facts", {}), found.get("style", {})
    clean, poisoned, thumbs = facts.get("corrections"), facts.get("poisoned"), style.get("thumbs")
    return [
        _least("corrections: held-out accuracy above the base's", clean and clean["gain"]["value"], GAIN),
        _least("corrections: general ability", clean and clean.get("general_change"), -GENERAL),
        _above_zero("thumbs: liked style above the base's", thumbs and thumbs["gain"]),
        _never_passed("shuffled answers", facts.get("shuffled")),
        _never_passed("random thumbs", style.get("random")),
        _least(
            "poisoned: held-out accuracy beside corrections'",
            poisoned and clean and poisoned["accuracy"]["value"] - clean["accuracy"]["value"],
            -POISON_COST,
        ),
        _none("poisoned: false answers learned", poisoned and poisoned["poison_learned"]),
    ]


def points(value: float) -> str:
    return f"{100 * value:+.1f} points"


def _least(name: str, value: float | None, least: float) -> Bar:
    if value is None:
        return Bar(name, f"at least {points(least)}", "not measured", None)
    return Bar(name, f"at least {points(least)}", points(value), value >= least)


def _above_zero(name: str, gain: Mapping[str, Any] | None) -> Bar:
    if gain is None or gain["low"] is None:
        return Bar(name, "interval above zero", "not measured", None)
    told = f"{points(gain['value'])} [{points(gain['low'])}, {points(gain['high'])}]"
    return Bar(name, "interval above zero", told, gain["low"] > 0)


def _never_passed(name: str, arm: Mapping[str, Any] | None) -> Bar:
    if arm is None:
        return Bar(f"{name}: verdicts", "never passed", "not measured", None)
    verdicts = [arm["verdicts"][seed] for seed in sorted(arm["verdicts"])]
    return Bar(f"{name}: verdicts", "never passed", ", ".join(verdicts), "passed" not in verdicts)


def _none(name: str, count: int | None) -> Bar:
    return Bar(
        name, "none", "not measured" if count is None else str(count), None if count is None else count == 0
    )
