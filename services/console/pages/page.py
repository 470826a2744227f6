"""The page at `/`, hung into the console's app. It draws; what is shown is decided in `view`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from nicegui import ui
from starlette.concurrency import run_in_threadpool

from services.console.api.routes import ConsoleBackend
from services.console.pages.controls import add_controls
from services.console.pages.refresher import PERIOD_S, PageRefresher
from services.console.pages.render import PARTS
from services.console.security_middleware import SecurityMiddleware
from shared.adapters.http import problem

HERE = Path(__file__).parent
MARK = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#1561c4"/>'
    '<path d="M23 11a8.5 8.5 0 1 0 1.4 7" fill="none" stroke="#fff" stroke-width="3.4" stroke-linecap="round"/>'
    '<path d="M24.8 5.5v7h-7z" fill="#fff"/></svg>'
)
CARDS = (
    ("The loop", "loop", "w12"),
    ("Serves now", "serving", "w4"),
    ("Towards the next run", "threshold", "w4"),
    ("The run", "run", "w4"),
    ("Feedback by outcome, all lines", "events", "w7 tall"),
    ("Rollout decisions", "rollout", "w5"),
    ("Dead letters, all lines", "letters", "w5"),
    ("Versions and what the gate measured", "versions", "w12"),
)
STALE = '<p class="notice bad">The console has not read anything new for a while: see its log.</p>'


def add_page(app: FastAPI, console: ConsoleBackend, board: PageRefresher) -> None:
    """Adds the page to `app`, its fence around everything, and the board to its life. Once in a process: NiceGUI is
    one to a process."""
    css, theme = (HERE / "page.css").read_text(), (HERE / "theme.js").read_text()

    @app.api_route("/api/{rest:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
    async def nothing(rest: str) -> JSONResponse:
        # NiceGUI takes every other path, and answers in HTML.
        return problem(404, "http", "Not Found", f"there is no /api/{rest}")

    @ui.page("/", title="Loopwright", favicon=MARK)
    def live() -> None:
        ui.add_head_html(f"<style>{css}</style><script>{theme}</script>")
        _lay_out(console, board)

    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(served: FastAPI) -> AsyncIterator[None]:
        async with inner(served):
            board.start()
            try:
                yield
            finally:
                await run_in_threadpool(board.stop)

    app.router.lifespan_context = lifespan
    app.add_middleware(SecurityMiddleware, hosts=console.settings.hosts)
    ui.run_with(
        app,
        title="Loopwright",
        language="en-US",
        dark=None,
        tailwind=False,
        show_welcome_message=False,
        favicon=MARK,
    )


def _lay_out(console: ConsoleBackend, board: PageRefresher) -> None:
    parts: dict[str, ui.html] = {}
    with ui.element("main").classes("page"):
        with ui.element("header").classes("top"):
            ui.html(f"<h1>Loopwright</h1><span>line {board.line}</span>", sanitize=False).classes("brand")
            parts["headline"] = _part("headline", board).classes("told").props('role="status"')
            with ui.element("div").classes("tools"):
                add_controls(console, board)
                theme = ui.button("Dark or light", color=None).props("flat no-caps")
                theme.on("click", js_handler="() => window.loopwrightTheme()")
        stale = ui.html(sanitize=False)
        with ui.element("div").classes("grid"):
            for title, name, width in CARDS:
                with ui.element("section").classes(f"card {width}").props(f'aria-labelledby="h-{name}"'):
                    ui.html(title, sanitize=False, tag="h2").props(f'id="h-{name}"')
                    parts[name] = _part(name, board)
    assert set(parts) == set(PARTS)

    def show() -> None:
        for name, part in parts.items():
            part.set_content(board.parts[name])
        stale.set_content(STALE if board.stale else "")

    ui.timer(PERIOD_S, show)


def _part(name: str, board: PageRefresher) -> ui.html:
    # Everything in a part is escaped where it is drawn; the browser's sanitizer would take the drawings apart.
    return ui.html(board.parts[name], sanitize=False).props(f'id="{name}"')
