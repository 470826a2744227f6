"""The parts of the page as HTML, from the view: `parts.html` has the markup, `svg` the drawings. Pure."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2.environment import TemplateModule

from services.console.pages import view_model as words
from services.console.pages.svg import forest, loop_tall, loop_wide, loss_chart
from services.console.pages.view_model import PageView
from shared.adapters.templates import templates_in

PARTS = ("headline", "loop", "serving", "threshold", "run", "events", "rollout", "versions", "letters")


def render(view: PageView) -> dict[str, str]:
    """One for each of `PARTS`. The same view gives the same text, so that a page changes only where something did."""
    macros = _macros()
    return {part: str(getattr(macros, part)(view)) for part in PARTS}


@cache
def _macros() -> TemplateModule:
    environment = templates_in(Path(__file__).parent)
    environment.globals |= {
        "words": words,
        "forest": forest,
        "loop_tall": loop_tall,
        "loop_wide": loop_wide,
        "loss_chart": loss_chart,
    }
    return environment.get_template("parts.html").module
