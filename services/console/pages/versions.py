"""View of the versions, with the metrics that the gate measured for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.console.core.responses import Json
from services.console.pages import formatting as fmt

MAX_VERSIONS: Final = 10
TONES: Final = {"passed": "good", "failed": "bad", "inconclusive": "warn"}
AXIS_MARGIN: Final = 0.08
"""Margin on both sides of an axis that does not span 0..1, as a share of its length."""


@dataclass(frozen=True, slots=True)
class ForestPlot:
    """Positions along one common axis, each 0..1, or None if not measured."""

    value: float | None
    low: float | None
    high: float | None
    baseline: float | None
    bound: float | None


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of the gate."""

    name: str
    value: str
    interval: str
    baseline: str
    bound: str
    n: str
    passed: bool | None
    plot: ForestPlot


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version. The verdict of the base is `base`, because the gate does not evaluate it."""

    version: str
    short: str
    verdict: str
    tone: str
    serving: bool
    compared_with: str
    reasons: tuple[str, ...]
    trained_on: str
    created: str
    metrics: tuple[MetricRow, ...]
    """The metrics that decide the verdict. The gate report has all of them."""


def version_rows(versions: Sequence[Json]) -> tuple[tuple[VersionRow, ...], int]:
    """Return the newest versions, newest first, and how many are left out. Serving versions are always included."""
    newest_first = list(reversed(versions))
    included = [v for i, v in enumerate(newest_first) if i < MAX_VERSIONS or v["serving"]]
    return tuple(_row(version) for version in included), len(newest_first) - len(included)


def deciding(metrics: Sequence[Json]) -> list[Json]:
    """Return the metrics that passed or failed, or all of them if none has a verdict."""
    return [metric for metric in metrics if metric["passed"] is not None] or list(metrics)


def _row(version: Json) -> VersionRow:
    created = fmt.parse_time(version["created_at"])
    verdict = "base" if version["kind"] == "base" else version["verdict"] or "not gated"
    return VersionRow(
        version=version["version"],
        short=fmt.short_version(version["version"]),
        verdict=verdict,
        tone=TONES.get(verdict, ""),
        serving=version["serving"],
        compared_with=fmt.short_version(version["gated_against"]) if version["gated_against"] else "",
        reasons=tuple(version["reasons"]),
        trained_on=_trained_on(version),
        created=fmt.timestamp(created) if created is not None else "",
        metrics=tuple(_metric(metric) for metric in deciding(version["figures"])),
    )


def _trained_on(version: Json) -> str:
    dataset = version["dataset"]
    if dataset is None:
        return str(version["base_model"])
    examples = fmt.count(dataset["examples"], "example", "examples")
    text = f"{examples} from {fmt.count(dataset['users'], 'user', 'users')}"
    return text if version["reproducible"] else f"{text}; not reproducible, because some of it was erased"


def _metric(metric: Json) -> MetricRow:
    low, high = metric["low"], metric["high"]
    return MetricRow(
        name=metric["name"].replace("_", " "),
        value=fmt.metric(metric["value"]),
        interval="" if low is None or high is None else f"{fmt.metric(low)} to {fmt.metric(high)}",
        baseline="" if metric["baseline"] is None else fmt.metric(metric["baseline"]),
        bound="" if metric["bound"] is None else fmt.metric(metric["bound"]),
        n=fmt.number(metric["n"]),
        passed=metric["passed"],
        plot=_plot(metric),
    )


def _plot(metric: Json) -> ForestPlot:
    names = ("value", "low", "high", "baseline", "bound")
    values = [metric[name] for name in names if metric[name] is not None]
    if all(0 <= value <= 1 for value in values):
        start, end = 0.0, 1.0
    else:
        margin = (max(values) - min(values)) * AXIS_MARGIN or 1.0
        start, end = min(values) - margin, max(values) + margin
    return ForestPlot(
        **{name: None if metric[name] is None else (metric[name] - start) / (end - start) for name in names}
    )
