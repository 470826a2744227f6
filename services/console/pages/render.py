"""HTML of the page: `parts.html` has the markup, `svg` the drawings."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from jinja2.environment import TemplateModule

from services.console.pages import view_model
from services.console.pages.svg import band_chart, forest_plot, loop_tall, loop_wide, loss_chart
from services.console.pages.view_model import PageView
from shared.adapters.templates import templates_in

PARTS: Final = (
    "headline",
    "loop",
    "serving",
    "threshold",
    "run",
    "feedback",
    "rollout",
    "canary",
    "versions",
    "dead_letters",
)
"""The parts of the page; each is a macro of `parts.html` and an element id."""


def render(view: PageView) -> dict[str, str]:
    """Return the HTML of each part.

    Equal views give equal HTML, so browsers redraw only the parts that changed.
    """
    macros = _macros()
    return {part: str(getattr(macros, part)(view)) for part in PARTS}


@cache
def _macros() -> TemplateModule:
    environment = templates_in(Path(__file__).parent)
    environment.globals |= {
        "texts": view_model,
        "band_chart": band_chart,
        "forest_plot": forest_plot,
        "loop_tall": loop_tall,
        "loop_wide": loop_wide,
        "loss_chart": loss_chart,
    }
    return environment.get_template("parts.html").module
