"""Figures from the results of all arms, and whether the bars are reached. Pure.

Values are shares: 0.65 is 65 points. The interval of a share is a 95 % interval over facts, whose wordings count as one
value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.worlds.world import WORLDS, WorldName
from services.trainer.gate.statistics import mean_interval

MIN_UNSEEN: Final = 0.65
MAX_GENERAL_LOSS: Final = 0.01
Result = Mapping[str, Any]
KEPT: Final = (
    "examples",
    "corrections",
    "trained",
    "objectives",
    "held",
    "stage_seconds",
    "tokens_per_s",
    "peak_mb",
)
"""Fields of a result that the report repeats."""


@dataclass(frozen=True, slots=True)
class Bar:
    """An acceptance bar of one world. `reached` is None if it was not measured with every seed."""

    world: WorldName
    name: str
    wanted: str
    found: str
    reached: bool | None


def compute_figures(results: Sequence[Result]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the figures by world and arm, one entry per seed."""
    base = {result["world"]: result for result in results if result["arm"] == "base"}
    figures: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for result in sorted(results, key=lambda result: (result["arm"], result["seed"])):
        arms = figures.setdefault(result["world"], {})
        arms.setdefault(result["arm"], []).append(arm_figures(result, base.get(result["world"])))
    return {world: figures[world] for world in WORLDS if world in figures}


def arm_figures(result: Result, base: Result | None) -> dict[str, Any]:
    """Return the figures of one arm. The change of general accuracy needs the base's result."""
    wordings = [judged for judgements in result["unseen"].values() for judged in judgements]
    by_fact = mean_interval([share([right for right, _ in judged]) for judged in result["unseen"].values()])
    general = share(list(result["general"].values()))
    figures: dict[str, Any] = {
        "seed": result["seed"],
        "unseen": {
            "questions": len(wordings),
            "right": sum(right for right, _ in wordings),
            "share": round(share([right for right, _ in wordings]), 4),
            "low": _rounded(by_fact.low),
            "high": _rounded(by_fact.high),
            "minority": sum(false for _, false in wordings),
        },
        "general": {"questions": len(result["general"]), "share": round(general, 4)},
        "seconds": result["seconds"],
        "code": result["code"],
    }
    if base is not None and result["arm"] != "base":
        change = general - share(list(base["general"].values()))
        figures["general"]["change"] = round(change, 4)
    figures |= {name: result[name] for name in KEPT if name in result}
    if "verdict" in result:
        figures |= {"verdict": result["verdict"], "reasons": result["reasons"]}
    return figures


def check_bars(
    figures: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], seeds: Sequence[int]
) -> list[Bar]:
    """Return the bars of every world. A bar is reached if every seed reaches it."""
    bars = []
    for world in WORLDS:
        ours = figures.get(world, {}).get("ours", [])
        measured = {arm["seed"] for arm in ours} >= set(seeds)
        shares = [arm["unseen"]["share"] for arm in ours]
        changes = [arm["general"]["change"] for arm in ours if "change" in arm["general"]]
        verdicts = [arm["verdict"] for arm in ours]
        complete = measured and len(changes) == len(ours)
        bars += [
            Bar(
                world,
                "unseen wordings right",
                f"at least {points(MIN_UNSEEN)}",
                ", ".join(map(points, shares)),
                all(value >= MIN_UNSEEN for value in shares) if measured else None,
            ),
            Bar(
                world,
                "general accuracy, change from the base",
                f"at most {points(MAX_GENERAL_LOSS)} less",
                ", ".join(f"{100 * value:+.1f}" for value in changes),
                all(value >= -MAX_GENERAL_LOSS for value in changes) if complete else None,
            ),
            Bar(
                world,
                "verdict",
                "passed",
                ", ".join(verdicts),
                all(verdict == "passed" for verdict in verdicts) if measured else None,
            ),
        ]
    return bars


def share(values: Sequence[float]) -> float:
    """Return the mean of values that are true, false or shares, or 0 if there are none."""
    return sum(values) / len(values) if values else 0.0


def points(value: float) -> str:
    """Return a share in points."""
    return f"{100 * value:.1f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
