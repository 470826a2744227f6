"""Small SVG drawings: elements, linear scales, and an estimate with its interval."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

Scale = Callable[[float], float]
"""Value -> coordinate."""


def element(tag: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """Return an SVG element. Text and attribute values are escaped; `Markup` children are kept.

    An underscore at the end of an attribute's name is dropped (`class_`), others become hyphens (`stroke_width`).
    Attributes with the value None are left out.
    """
    pairs = [
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), value)
        for name, value in attributes.items()
        if value is not None
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(tag, Markup("").join(pairs), Markup("").join(children))


def linear_scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return a function from values between `low` and `high` to coordinates between `start` and `end`.

    Coordinates are rounded to one decimal place.
    """
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def estimate(
    x: Scale,
    y: float,
    *,
    value: float,
    low: float | None = None,
    high: float | None = None,
    baseline: float | None = None,
    radius: float = 5,
) -> Markup:
    """Return the marks of one estimate on a horizontal axis at height `y`.

    The interval is a line (class `interval`), the baseline a smaller circle (`baseline`), the value a circle (`value`).
    """
    marks = []
    if low is not None and high is not None:
        marks.append(element("line", class_="interval", x1=x(low), x2=x(high), y1=y, y2=y))
    if baseline is not None:
        marks.append(element("circle", class_="baseline", cx=x(baseline), cy=y, r=radius - 1))
    marks.append(element("circle", class_="value", cx=x(value), cy=y, r=radius))
    return Markup("").join(marks)
