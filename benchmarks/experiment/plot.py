"""The figures as an SVG: of each arm its seeds as dots, their mean as a bar with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, ROW, HEAD = 760, 150, 90, 34, 46
TICKS = 5
EVEN_POINTS = 0.02
"""A quarter of a range of as many to both sides is whole points."""


@dataclass(frozen=True, slots=True)
class Line:
    """One arm in a panel."""

    label: str
    value: float
    low: float | None
    high: float | None
    seeds: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    lines: Sequence[Line]
    least: float
    most: float
    unit: str = "%"


def panels(found: Mapping[str, Any]) -> list[Panel]:
    out = []
    for world, what, title in (
        ("facts", "accuracy", "Held-out questions answered rightly"),
        ("style", "share_liked", "Held-out answers that are short and direct"),
    ):
        lines = [
            Line(name, arm[what]["value"], arm[what]["low"], arm[what]["high"], list(arm["seeds"].values()))
            for name, arm in found.get(world, {}).items()
        ]
        if lines:
            out.append(Panel(title, lines, 0.0, 1.0))
    general = [
        Line(name, arm["general_change"], None, None, [one["value"] for one in arm["general"].values()])
        for world in ("facts", "style")
        for name, arm in found.get(world, {}).items()
        if arm.get("general_change") is not None
    ]
    if general:
        furthest = max(abs(value) for line in general for value in line.seeds)
        reach = EVEN_POINTS * max(3, math.ceil(furthest / EVEN_POINTS))
        out.append(Panel("Change of general accuracy at the gate", general, -reach, reach, "points"))
    return out


def svg(found: Mapping[str, Any]) -> str:
    """A whole file; it needs no script and no font of its own."""
    shown = panels(found)
    height = sum(HEAD + ROW * len(panel.lines) + 30 for panel in shown) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    top = 10
    for panel in shown:
        parts += _panel(panel, top)
        top += HEAD + ROW * len(panel.lines) + 30
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: int) -> list[str]:
    def x(value: float) -> float:
        share = (value - panel.least) / (panel.most - panel.least)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    bottom = top + HEAD + ROW * len(panel.lines)
    out = [f'<text x="{LEFT}" y="{top + 20}" font-weight="bold">{escape(panel.title)}</text>']
    for i in range(TICKS):
        value = panel.least + i * (panel.most - panel.least) / (TICKS - 1)
        out.append(f'<line x1="{x(value)}" x2="{x(value)}" y1="{top + 32}" y2="{bottom}" stroke="#ddd"/>')
        out.append(
            f'<text x="{x(value)}" y="{bottom + 15}" text-anchor="middle" fill="#666">'
            f"{100 * value:.0f} {panel.unit}</text>"
        )
    for i, line in enumerate(panel.lines):
        y = top + HEAD + ROW * i + 6
        out.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(line.label)}</text>')
        if line.low is not None and line.high is not None:
            out.append(
                f'<line x1="{x(line.low)}" x2="{x(line.high)}" y1="{y}" y2="{y}" stroke="#4477aa" stroke-width="5" '
                'stroke-opacity="0.45"/>'
            )
        out += [f'<circle cx="{x(seed)}" cy="{y}" r="3" fill="#888"/>' for seed in line.seeds]
        out.append(
            f'<line x1="{x(line.value)}" x2="{x(line.value)}" y1="{y - 8}" y2="{y + 8}" stroke="#224466" '
            'stroke-width="3"/>'
        )
        out.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4}">{100 * line.value:.1f} {panel.unit}</text>')
    return out
