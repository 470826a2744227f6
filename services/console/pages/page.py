"""The page at `/`, served by NiceGUI within the console's app. `view_model` decides what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from nicegui import ui

from services.console.backend import ConsoleBackend
from services.console.pages.controls import Operator, add_controls
from services.console.pages.refresher import PERIOD_S, PageRefresher
from services.console.pages.render import PARTS
from services.console.security_headers import SecurityHeaders
from shared.adapters.access import Access, Caller
from shared.adapters.access_middleware import caller_of

HERE: Final = Path(__file__).parent
LOGO: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#1561c4"/>'
    '<path d="M23 11a8.5 8.5 0 1 0 1.4 7" fill="none" stroke="#fff" stroke-width="3.4" stroke-linecap="round"/>'
    '<path d="M24.8 5.5v7h-7z" fill="#fff"/></svg>'
)
CARDS: Final = (
    ("Loop", "loop", "w12"),
    ("Serving", "serving", "w4"),
    ("Next run", "threshold", "w4"),
    ("Latest run", "run", "w4"),
    ("Feedback by outcome (all lines)", "feedback", "w7 tall"),
    ("Rollout decisions", "rollout", "w5"),
    ("Dead letters (all lines)", "dead_letters", "w5"),
    ("Canary", "canary", "w12"),
    ("Versions and their gate results", "versions", "w12"),
)
"""(title, part, CSS classes) of each card, in order."""
STALE: Final = (
    '<p class="notice bad">This page is out of date: the console has not refreshed it for a while. '
    "Check the console's log.</p>"
)


LOCKED: Final = (
    '<p class="notice bad">The API key of this page is no longer valid. '
    "Reload the page and sign in with another.</p>"
)


def add_page(app: FastAPI, backend: ConsoleBackend, refresher: PageRefresher, access: Access) -> None:
    """Add the page to `app`, and the security headers to all answers.

    Call this only once in a process: NiceGUI has global state.
    """
    css, theme = (HERE / "page.css").read_text(), (HERE / "theme.js").read_text()

    @ui.page("/", title="Loopwright", favicon=LOGO)
    def show_page(request: Request) -> None:
        ui.add_head_html(f"<style>{css}</style><script>{theme}</script>")
        _build(backend, refresher, access, caller_of(request))

    app.add_middleware(SecurityHeaders)
    ui.run_with(
        app,
        title="Loopwright",
        language="en-US",
        dark=None,
        tailwind=False,
        show_welcome_message=False,
        favicon=LOGO,
    )


def _build(backend: ConsoleBackend, refresher: PageRefresher, access: Access, caller: Caller) -> None:
    operator = Operator(caller.name, lambda: access.is_valid(caller, "operate"))
    parts: dict[str, ui.html] = {}
    with ui.element("main").classes("page"):
        with ui.element("header").classes("top"):
            ui.html(f"<h1>Loopwright</h1><span>Line {refresher.line}</span>", sanitize=False).classes("brand")
            parts["headline"] = _add_part("headline", refresher).classes("headline").props('role="status"')
            with ui.element("div").classes("tools"):
                add_controls(backend, refresher, operator)
                theme = ui.button("Switch theme", color=None).props("flat no-caps")
                theme.on("click", js_handler="() => window.loopwrightTheme()")
        stale = ui.html(sanitize=False)
        with ui.element("div").classes("grid"):
            for title, name, classes in CARDS:
                with ui.element("section").classes(f"card {classes}").props(f'aria-labelledby="h-{name}"'):
                    ui.html(title, sanitize=False, tag="h2").props(f'id="h-{name}"')
                    parts[name] = _add_part(name, refresher)
    assert set(parts) == set(PARTS)

    def update() -> None:
        if not access.is_valid(caller, "read"):  # the page stays open after its key was revoked
            for part in parts.values():
                part.set_content("")
            stale.set_content(LOCKED)
            return
        for name, part in parts.items():
            part.set_content(refresher.parts[name])
        stale.set_content(STALE if refresher.stale else "")

    ui.timer(PERIOD_S, update)


def _add_part(name: str, refresher: PageRefresher) -> ui.html:
    # All values in a part are escaped when it is rendered; the browser's sanitizer would remove the drawings.
    return ui.html(refresher.parts[name], sanitize=False).props(f'id="{name}"')
