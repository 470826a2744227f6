"""Pages with the feedback widget, on the real feedback service in memory, whose answers can be replaced by faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.adapters.http import problem
from tests import feedback_server
from tests.feedback_server import FeedbackApp

STYLE = """
  :root { color-scheme: light dark } body { font: 16px/1.5 system-ui, sans-serif; margin: 24px; max-width: 640px;
  background: light-dark(#fff, #141b25); color: light-dark(#16202e, #e8edf4) }
"""

POLICY = "default-src 'self'"
"""A strict policy: no inline script, no inline style."""

HEAD = (
    "<meta charset=utf-8><meta name=viewport content=width=device-width><title>Chat</title>"
    "<link rel=stylesheet href=/page.css><script src=/v1/widget.js defer></script>"
)


@dataclass
class WidgetPages:
    """A feedback service with test pages on its own origin."""

    app: FeedbackApp | None = None
    bodies: dict[str, str] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    """Statuses to answer the next feedback events with, instead of passing them on."""

    def page(self, path: str, body: str) -> str:
        """Add a page that loads the widget; return its address."""
        assert self.app is not None
        self.bodies[path] = body
        return self.app.url + path

    def around(self, service: ASGIApp) -> ASGIApp:
        """Return an app that answers for the pages and the faults, and passes everything else on."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            path = scope.get("path", "")
            if path == "/page.css":
                await Response(STYLE, media_type="text/css")(scope, receive, send)
            elif path in self.bodies:
                await self._html(path)(scope, receive, send)
            elif path == "/v1/feedback" and self.statuses:
                status = self.statuses.pop(0)
                await problem(status, "fault", "A fault", "a test wants it")(scope, receive, send)
            else:
                await service(scope, receive, send)

        return app

    def _html(self, path: str) -> HTMLResponse:
        html = f"<!doctype html><html lang=en>{HEAD}<body>{self.bodies[path]}</body></html>"
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})


@contextmanager
def served() -> Iterator[WidgetPages]:
    """Serve the feedback service and the pages that a test adds."""
    pages = WidgetPages()
    with feedback_server.served(around=pages.around) as app:
        pages.app = app
        yield pages
