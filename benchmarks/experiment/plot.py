"""The experiment's figures as an SVG: for each arm its seeds as small dots, and their mean with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from shared.svg import element, estimate, linear_scale

WIDTH, LEFT, RIGHT = 760, 150, 90
ROW_HEIGHT, HEADER, FOOTER, MARGIN = 34, 46, 30, 10
TICKS = 5
MIN_REACH, REACH_STEP = 0.06, 0.02
"""The axis of a change reaches equally far both ways. A multiple of this step puts its ticks on whole points."""
STYLE = (
    "text { fill: #222 } .label { fill: #666 } .grid { stroke: #ddd } .seed { fill: #888 } "
    ".interval { stroke: #4477aa; stroke-width: 5; stroke-opacity: 0.45 } .value { fill: #224466 }"
)


@dataclass(frozen=True, slots=True)
class PlotRow:
    """One arm in a panel."""

    label: str
    value: float
    low: float | None
    high: float | None
    seeds: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    """Arms on a common axis from `low` to `high`. Values are shares, shown in percent or points."""

    title: str
    rows: Sequence[PlotRow]
    low: float
    high: float
    unit: str = "%"

    @property
    def height(self) -> int:
        """Height in pixels."""
        return HEADER + ROW_HEIGHT * len(self.rows) + FOOTER


def make_panels(figures: Mapping[str, Any]) -> list[Panel]:
    """Return a panel for each scenario, and one for the change of general accuracy. Empty panels are left out."""
    panels = []
    for scenario, figure, title in (
        ("facts", "accuracy", "Held-out questions answered correctly"),
        ("style", "share_liked", "Held-out answers that are short and direct"),
    ):
        rows = [
            PlotRow(
                name,
                arm[figure]["value"],
                arm[figure]["low"],
                arm[figure]["high"],
                list(arm["seeds"].values()),
            )
            for name, arm in figures.get(scenario, {}).items()
        ]
        if rows:
            panels.append(Panel(title, rows, 0.0, 1.0))
    general = [
        PlotRow(name, arm["general_change"], None, None, [seed["value"] for seed in arm["general"].values()])
        for scenario in ("facts", "style")
        for name, arm in figures.get(scenario, {}).items()
        if arm.get("general_change") is not None
    ]
    if general:
        furthest = max(abs(value) for row in general for value in row.seeds)
        reach = max(MIN_REACH, REACH_STEP * math.ceil(furthest / REACH_STEP))
        panels.append(Panel("Change of general accuracy at the gate", general, -reach, reach, "points"))
    return panels


def svg(figures: Mapping[str, Any]) -> str:
    """Return the content of an SVG file without scripts or fonts of its own."""
    panels = make_panels(figures)
    height = sum(panel.height for panel in panels) + MARGIN
    parts = [element("style", STYLE), element("rect", width=WIDTH, height=height, fill="white")]
    top = MARGIN
    for panel in panels:
        parts.append(_draw(panel, top))
        top += panel.height
    picture = element(
        "svg",
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        width=WIDTH,
        height=height,
        font_family="sans-serif",
        font_size=13,
    )
    return f"{picture}\n"


def _draw(panel: Panel, top: int) -> Markup:
    x = linear_scale(panel.low, panel.high, LEFT, WIDTH - RIGHT)
    bottom = top + HEADER + ROW_HEIGHT * len(panel.rows)
    parts = [element("text", panel.title, x=LEFT, y=top + 20, font_weight="bold")]
    for i in range(TICKS):
        value = panel.low + i * (panel.high - panel.low) / (TICKS - 1)
        label = f"{100 * value:.0f} {panel.unit}"
        parts.append(element("line", class_="grid", x1=x(value), x2=x(value), y1=top + 32, y2=bottom))
        parts.append(element("text", label, class_="label", x=x(value), y=bottom + 15, text_anchor="middle"))
    for i, row in enumerate(panel.rows):
        y = top + HEADER + ROW_HEIGHT * i + 6
        parts.append(element("text", row.label, x=LEFT - 12, y=y + 4, text_anchor="end"))
        parts.append(estimate(x, y, value=row.value, low=row.low, high=row.high, radius=6))
        parts += [element("circle", class_="seed", cx=x(seed), cy=y, r=3) for seed in row.seeds]
        parts.append(element("text", f"{100 * row.value:.1f} {panel.unit}", x=WIDTH - RIGHT + 12, y=y + 4))
    return element("g", *parts)
