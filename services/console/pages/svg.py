"""Drawings of the page: the loop, the loss and intervals, as inline SVG in the colours of `page.css`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from services.console.pages.canary import BandPoint
from services.console.pages.loop_diagram import Arrow, LoopDiagram, Node
from services.console.pages.versions import ForestPlot
from shared.svg import element, estimate, linear_scale

EMPTY: Final = Markup("")


# --- the loop -----------------------------------------------------------------------------------------------------

NODE_W, NODE_H = 172, 76


@dataclass(frozen=True, slots=True)
class ArrowShape:
    """Path of an arrow (`d` of an SVG path), and the position of its two lines of text."""

    d: str
    text_x: float
    text_y: float
    anchor: str


def loop_wide(loop: LoopDiagram) -> Markup:
    """Draw the services side by side, with the arrow back below them: for screens wider than a phone's."""
    step, top, left = 272, 14, 12
    width, height = left * 2 + step * 4 + NODE_W, 178
    middle, bottom = top + NODE_H / 2, top + NODE_H
    corners = [(left + step * i, top) for i in range(5)]
    shapes = [
        ArrowShape(
            f"M{x + NODE_W + 6} {middle} H{x + step - 8}",
            x + NODE_W + (step - NODE_W) / 2,
            middle - 10,
            "middle",
        )
        for x, _ in corners[:4]
    ]
    first, last, low = corners[0][0] + NODE_W / 2, corners[4][0] + NODE_W / 2, height - 32
    back = f"M{last} {bottom + 6} V{low - 14} Q{last} {low} {last - 14} {low}"
    back += f" H{first + 14} Q{first} {low} {first} {low - 14} V{bottom + 8}"
    shapes.append(ArrowShape(back, (first + last) / 2, low - 10, "middle"))
    return _draw_loop(loop, corners, shapes, width, height, "loop wide")


def loop_tall(loop: LoopDiagram) -> Markup:
    """Draw the services one below the other, with the arrow back at the side: for phones."""
    step, top, left = 126, 6, 96
    width, height = 340, top * 2 + step * 4 + NODE_H
    across = left + NODE_W / 2
    corners = [(left, top + step * i) for i in range(5)]
    shapes = [
        ArrowShape(
            f"M{across} {y + NODE_H + 5} V{y + step - 7}",
            across + 14,
            y + NODE_H + (step - NODE_H) / 2 - 2,
            "start",
        )
        for _, y in corners[:4]
    ]
    start, end, side = corners[4][1] + NODE_H / 2, corners[0][1] + NODE_H / 2, 22
    back = f"M{left - 6} {start} H{side + 14} Q{side} {start} {side} {start - 14}"
    back += f" V{end + 14} Q{side} {end} {side + 14} {end} H{left - 8}"
    shapes.append(ArrowShape(back, side + 9, (start + end) / 2, "start"))
    return _draw_loop(loop, corners, shapes, width, height, "loop tall")


def _draw_loop(
    loop: LoopDiagram,
    corners: Sequence[tuple[float, float]],
    shapes: Sequence[ArrowShape],
    width: float,
    height: float,
    kind: str,
) -> Markup:
    # The page contains both drawings, and marker ids must be unique in a page.
    tip = f"tip-{kind.rsplit(' ', maxsplit=1)[-1]}"
    arrows = EMPTY.join(
        _draw_arrow(arrow, shape, tip) for arrow, shape in zip(loop.arrows, shapes, strict=True)
    )
    nodes = EMPTY.join(_draw_node(node, x, y) for node, (x, y) in zip(loop.nodes, corners, strict=True))
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"><defs><marker id="{}" viewBox="0 0 8 8" '
        'refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
        '<path d="M0 0L8 4L0 8z" class="tip"/></marker></defs>{}{}</svg>'
    ).format(kind, width, height, loop.description, tip, arrows, nodes)


def _draw_node(node: Node, x: float, y: float) -> Markup:
    return Markup(
        '<g transform="translate({} {})" class="node{}"><rect width="{}" height="{}" rx="12"/>'
        '<text class="name" x="16" y="28">{}</text><text class="task" x="16" y="{}">{}</text>{}</g>'
    ).format(
        x,
        y,
        " busy" if node.busy else "",
        NODE_W,
        NODE_H,
        node.name,
        46,
        node.task,
        Markup('<text class="now" x="16" y="65">{}</text>').format(node.now) if node.now else EMPTY,
    )


def _draw_arrow(arrow: Arrow, shape: ArrowShape, tip: str) -> Markup:
    return Markup(
        '<g class="arrow{}"><path d="{}" marker-end="url(#{})"/>'
        '<text class="count" x="{}" y="{}" text-anchor="{}">{}</text>'
        '<text class="unit" x="{}" y="{}" text-anchor="{}">{}</text></g>'
    ).format(
        " moving" if arrow.moving else "",
        shape.d,
        tip,
        shape.text_x,
        shape.text_y,
        shape.anchor,
        arrow.count,
        shape.text_x,
        shape.text_y + (26 if shape.anchor == "middle" else 16),
        shape.anchor,
        arrow.unit,
    )


# --- the loss -----------------------------------------------------------------------------------------------------

CHART_W, CHART_H = 480, 120
PAD_LEFT, PAD_RIGHT, PAD_TOP, PAD_BOTTOM = 44, 14, 10, 22


def loss_chart(losses: Sequence[tuple[int, float]]) -> Markup:
    """Draw the loss by step, on an axis that starts at 0. Return nothing for fewer than two points."""
    if len(losses) < 2:
        return EMPTY
    first, last = losses[0][0], losses[-1][0]
    top = max(loss for _, loss in losses) * 1.05 or 1.0
    inner_w, inner_h = CHART_W - PAD_LEFT - PAD_RIGHT, CHART_H - PAD_TOP - PAD_BOTTOM

    def position(step: int, loss: float) -> tuple[float, float]:
        return (
            round(PAD_LEFT + inner_w * (step - first) / (last - first), 1),
            round(PAD_TOP + inner_h * (1 - loss / top), 1),
        )

    line = " ".join(f"{x},{y}" for x, y in (position(*point) for point in losses))
    end_x, end_y = position(*losses[-1])
    floor = PAD_TOP + inner_h
    grid = EMPTY.join(
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" text-anchor="end">{}</text>'
        ).format(PAD_LEFT, CHART_W - PAD_RIGHT, y, y, PAD_LEFT - 8, y + 4, f"{value:.2f}")
        for value, y in (
            (share * top, round(PAD_TOP + inner_h * (1 - share), 1)) for share in (0.0, 0.5, 1.0)
        )
    )
    description = f"Loss by step: {losses[0][1]:.3f} at step {first}, {losses[-1][1]:.3f} at step {last}."
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}'
        '<polygon class="area" points="{},{} {} {},{}"/><polyline points="{}"/><circle cx="{}" cy="{}" r="3.5"/>'
        '<text x="{}" y="{}">step {}</text><text x="{}" y="{}" text-anchor="end">step {}</text></svg>'
    ).format(
        CHART_W, CHART_H, description, grid, PAD_LEFT, floor, line, end_x, floor, line, end_x, end_y,
        PAD_LEFT, CHART_H - 5, first, CHART_W - PAD_RIGHT, CHART_H - 5, last,
    )  # fmt: skip


# --- the canary ---------------------------------------------------------------------------------------------------

BAND_W, BAND_H = 960, 200


def band_chart(points: Sequence[BandPoint], began: str, ended: str) -> Markup:
    """Draw the intervals of both arms over time, from 0 to 1. Return nothing for fewer than two points."""
    if len(points) < 2:
        return EMPTY
    floor = BAND_H - PAD_BOTTOM
    x, y = linear_scale(0, 1, PAD_LEFT, BAND_W - PAD_RIGHT), linear_scale(0, 1, floor, PAD_TOP)
    marks = [
        element("line", class_="grid", x1=PAD_LEFT, x2=BAND_W - PAD_RIGHT, y1=y(value), y2=y(value))
        + element("text", f"{value:.0%}", x=PAD_LEFT - 8, y=y(value) + 4, text_anchor="end")
        for value in (0.0, 0.5, 1.0)
    ]
    for name in ("stable", "canary"):
        arms = [(x(point.at), getattr(point, name)) for point in points]
        lower = [f"{at},{y(low)}" for at, (low, _, _) in arms]
        upper = [f"{at},{y(high)}" for at, (_, high, _) in reversed(arms)]
        means = [f"{at},{y(mean)}" for at, (_, _, mean) in arms if mean is not None]
        marks.append(element("polygon", class_=f"band {name}", points=" ".join(lower + upper)))
        marks.append(element("polyline", class_=name, points=" ".join(means)))
    marks.append(element("text", began, x=PAD_LEFT, y=BAND_H - 5))
    marks.append(element("text", ended, x=BAND_W - PAD_RIGHT, y=BAND_H - 5, text_anchor="end"))
    description = (
        "Satisfaction with the canary (blue) and the stable version (grey) over time, with 95 % intervals"
    )
    return element(
        "svg", *marks, class_="chart", viewBox=f"0 0 {BAND_W} {BAND_H}", role="img", aria_label=description
    )


# --- one metric ---------------------------------------------------------------------------------------------------

FOREST_W, FOREST_H = 160, 18


def forest_plot(plot: ForestPlot, passed: bool | None) -> Markup:
    """Draw a metric's value and interval, its baseline as a hollow mark and its limit as a dashed line."""
    if plot.value is None:
        return EMPTY
    scale = linear_scale(0, 1, 6, FOREST_W - 6)
    middle = FOREST_H / 2
    marks = [element("line", class_="axis", x1=0, x2=FOREST_W, y1=middle, y2=middle)]
    if plot.bound is not None:
        bound = scale(plot.bound)
        marks.append(element("line", class_="bound", x1=bound, x2=bound, y1=1, y2=FOREST_H - 1))
    marks.append(
        estimate(
            scale,
            middle,
            value=plot.value,
            low=plot.low,
            high=plot.high,
            baseline=plot.baseline,
            radius=4.5,
        )
    )
    tone = {True: "passed", False: "failed", None: ""}[passed]
    return Markup('<svg class="forest {}" viewBox="0 0 {} {}" aria-hidden="true">{}</svg>').format(
        tone, FOREST_W, FOREST_H, EMPTY.join(marks)
    )
