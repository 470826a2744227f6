"""The gate report as a self-contained page: no scripts, and nothing is loaded. Pure: JSON in, HTML out.

The template escapes all text of users and models, and drawings consist of numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Template
from markupsafe import Markup

from services.trainer.gate.metrics import METRICS
from services.trainer.gate.metrics.metric import FigureInfo, Json, Layout, ReportSection
from services.trainer.gate.report_json import SECTIONS
from services.trainer.gate.verdict import BASE_FIGURES, VOTE_FIGURES
from shared.adapters.templates import templates_in
from shared.svg import element, estimate, linear_scale

FIGURES: Final = {
    figure.name: figure for figure in (*VOTE_FIGURES, *(f for m in METRICS for f in m.figures), *BASE_FIGURES)
}
HEADLINES: Final = {
    "passed": "Passed: the version may serve users",
    "failed": "Failed: the version will not serve users",
    "inconclusive": "Inconclusive: the version will not serve users yet",
}
OUTCOMES: Final = {1: "won", 0: "tie", -1: "lost"}
PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN = 220, 26, 8


@dataclass(frozen=True, slots=True)
class FigureRow:
    """One figure as the page shows it."""

    label: str
    about: str
    value: str
    interval: str
    baseline: str
    bound: str
    n: int
    passed: bool | None
    plot: Markup


@dataclass(frozen=True, slots=True)
class PageSection:
    """Examples as the page shows them: in groups, each with a heading (empty for a single group)."""

    title: str
    layout: Layout
    note: Callable[[Json], str]
    intro: str
    groups: list[tuple[str, list[Json]]] = field(default_factory=list)


def page(report: Json) -> str:
    """Return the page of a report that `report_json` made.

    The examples may be missing because they were erased or must not be shown. The page then shows the field `without`
    as the reason. The field `version` names the version, if it is known.
    """
    return _template().render(
        run=report,
        report=report["report"],
        headline=HEADLINES[report["report"]["verdict"]],
        figures=[figure_row(figure) for figure in report["report"]["figures"] if figure["n"]],
        has_examples=any(section.name in report for section in SECTIONS),
        sections=[
            shown for section in SECTIONS if (shown := page_section(section, report.get(section.name, ())))
        ],
        outcomes=OUTCOMES,
        version=report.get("version", ""),
        without=report.get("without", ""),
    )


def page_section(section: ReportSection, rows: Sequence[Json]) -> PageSection | None:
    """Return a section with the rows to show, or None if it has none and needs no text for that."""
    if section.rank is None:
        shown = PageSection(section.title, section.layout, section.note, section.intro, [("", list(rows))])
        return shown if rows else None
    ranked = [row for row in rows if section.rank(row) is not None]
    if not ranked:
        empty = PageSection(section.title, section.layout, section.note, section.if_empty)
        return empty if section.if_empty else None
    best, worst = best_and_worst(ranked, section.rank, section.shown)
    groups = [(heading, group) for heading, group in (("Best", best), ("Worst", worst)) if group]
    intro = section.intro.format(count=len(ranked))
    return PageSection(section.title, section.layout, section.note, intro, groups)


def best_and_worst(
    rows: Sequence[Json], rank: Callable[[Json], float | None], count: int
) -> tuple[list[Json], list[Json]]:
    """Return the `count` rows of the highest rank and the `count` of the lowest. No row is in both."""
    ordered = sorted(rows, key=lambda row: (rank(row), row["identity"]), reverse=True)
    best = ordered[:count]
    return best, list(reversed(ordered[len(best) :][-count:]))


def figure_row(figure: Json) -> FigureRow:
    """Return a figure with its label. A figure of a metric that no longer exists is labelled with its name."""
    info = FIGURES.get(figure["name"]) or FigureInfo(figure["name"], figure["name"].replace("_", " "))
    low, high = figure["low"], figure["high"]
    return FigureRow(
        label=info.label,
        about=f"{info.description} ({info.unit})" if info.unit else info.description,
        value=number(figure["value"]),
        interval="" if low is None or high is None else f"{number(low)} to {number(high)}",
        baseline=number(figure["baseline"]),
        bound=number(figure["bound"]),
        n=figure["n"],
        passed=figure["passed"],
        plot=plot(figure, is_change=info.is_change),
    )


def number(value: float | None) -> str:
    """Return a number with at most three decimal places, or an empty string for None."""
    if value is None:
        return ""
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}".rstrip("0").rstrip(".") or "0"


def plot(figure: Json, *, is_change: bool = False) -> Markup:
    """Return a drawing of a figure: the value with its interval, stable as a hollow dot, the bound as a dashed line."""
    names = ["value", "low", "high", "bound"] + ([] if is_change else ["baseline"])
    known = {name: figure[name] for name in names if figure[name] is not None}
    if "value" not in known:
        return Markup("")
    low, high = _axis(list(known.values()))
    x = linear_scale(low, high, PLOT_MARGIN, PLOT_WIDTH - PLOT_MARGIN)
    middle = PLOT_HEIGHT / 2
    marks = [element("line", class_="axis", x1=0, x2=PLOT_WIDTH, y1=middle, y2=middle)]
    if low < 0 < high:
        marks.append(element("line", class_="zero", x1=x(0), x2=x(0), y1=7, y2=PLOT_HEIGHT - 7))
    bound = known.pop("bound", None)
    if bound is not None:
        marks.append(element("line", class_="bound", x1=x(bound), x2=x(bound), y1=1, y2=PLOT_HEIGHT - 1))
    label = ", ".join(f"{name} {number(value)}" for name, value in known.items())
    if bound is not None:
        label += f", bound {number(bound)}"
    color = {True: "good", False: "bad", None: ""}[figure["passed"]]
    return element(
        "svg",
        *marks,
        estimate(x, middle, **known),
        class_=f"plot {color}",
        viewBox=f"0 0 {PLOT_WIDTH} {PLOT_HEIGHT}",
        role="img",
        aria_label=label,
    )


def _axis(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis: 0 to 1 for shares, symmetric around 0 for changes, else from 0."""
    if min(values) >= 0 and max(values) <= 1:
        return 0.0, 1.0
    if min(values) >= 0:
        return 0.0, max(values) * 1.05
    reach = max(map(abs, values)) * 1.1
    return -reach, reach


@cache
def _template() -> Template:
    environment = templates_in(Path(__file__).parent)
    environment.globals["number"] = number
    return environment.get_template("report.html")
