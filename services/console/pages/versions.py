"""The versions with what the gate measured of each. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.console.core.responses import Json
from services.console.pages import formatting as say

MAX_VERSIONS = 10
TONES = {"passed": "good", "failed": "bad", "inconclusive": "warn"}


@dataclass(frozen=True, slots=True)
class Forest:
    """Where value, interval, baseline and bound lie between the ends of one common axis, each 0..1 or None."""

    value: float | None
    low: float | None
    high: float | None
    baseline: float | None
    bound: float | None


@dataclass(frozen=True, slots=True)
class FigureRow:
    name: str
    value: str
    interval: str
    baseline: str
    bound: str
    n: str
    passed: bool | None
    forest: Forest


@dataclass(frozen=True, slots=True)
class VersionRow:
    """`verdict` is `base` for the base, which is tested by none. `figures` are those that decide; the gate's report has
    all."""

    version: str
    short: str
    verdict: str
    tone: str
    serving: bool
    against: str
    reasons: tuple[str, ...]
    trained_on: str
    created: str
    figures: tuple[FigureRow, ...]


def version_rows(versions: Sequence[Json]) -> tuple[tuple[VersionRow, ...], int]:
    """The newest first, and how many are left out. What serves is never left out."""
    newest = list(reversed(versions))
    kept = [v for i, v in enumerate(newest) if i < MAX_VERSIONS or v["serving"]]
    return tuple(_row(version) for version in kept), len(newest) - len(kept)


def _row(version: Json) -> VersionRow:
    created = say.moment(version["created_at"])
    verdict = "base" if version["kind"] == "base" else version["verdict"] or "not gated"
    return VersionRow(
        version=version["version"],
        short=say.short(version["version"]),
        verdict=verdict,
        tone=TONES.get(verdict, ""),
        serving=version["serving"],
        against=say.short(version["gated_against"]) if version["gated_against"] else "",
        reasons=tuple(version["reasons"]),
        trained_on=_trained_on(version),
        created=say.when(created) if created is not None else "",
        figures=tuple(_figure(figure) for figure in deciding(version["figures"])),
    )


def deciding(figures: Sequence[Json]) -> list[Json]:
    """Those that hold or do not; all where no figure says so."""
    return [figure for figure in figures if figure["passed"] is not None] or list(figures)


def _trained_on(version: Json) -> str:
    dataset = version["dataset"]
    if dataset is None:
        return str(version["base_model"])
    told = f"{say.count(dataset['examples'], 'example', 'examples')} of {say.count(dataset['users'], 'user', 'users')}"
    return told if version["reproducible"] else f"{told}; not reproducible, data of it was erased"


def _figure(figure: Json) -> FigureRow:
    low, high = figure["low"], figure["high"]
    return FigureRow(
        name=figure["name"].replace("_", " "),
        value=say.measured(figure["value"]),
        interval="" if low is None or high is None else f"{say.measured(low)} to {say.measured(high)}",
        baseline="" if figure["baseline"] is None else say.measured(figure["baseline"]),
        bound="" if figure["bound"] is None else say.measured(figure["bound"]),
        n=say.number(figure["n"]),
        passed=figure["passed"],
        forest=_forest(figure),
    )


def _forest(figure: Json) -> Forest:
    names = ("value", "low", "high", "baseline", "bound")
    known = [figure[name] for name in names if figure[name] is not None]
    if all(0 <= value <= 1 for value in known):
        start, end = 0.0, 1.0
    else:
        room = (max(known) - min(known)) * 0.08 or 1.0
        start, end = min(known) - room, max(known) + room
    return Forest(**{n: None if figure[n] is None else (figure[n] - start) / (end - start) for n in names})
