"""The processor's own web view, in addition to those of every engine (`shared/stream/faust_host.py`)."""

from __future__ import annotations

import asyncio

from faust.types.web import Request, Response
from faust.web import View
from mode import Service

from services.processor.live_view.view import LiveView
from shared.stream.faust_host import EngineApp


def add_live_view(app: EngineApp, view: LiveView) -> None:
    """Run the live view for as long as the worker, show it at `/tallies`, and name its status in `/readyz`."""

    class LiveViewService(Service):
        """Starts after the engine and stops before it, because it is added after the engine."""

        async def on_start(self) -> None:
            view.start()

        async def on_stop(self) -> None:
            await asyncio.to_thread(view.stop)

    app.service(LiveViewService)
    app.readiness_details["live_view"] = view.status

    @app.page("/tallies")
    async def tallies(web: View, request: Request) -> Response:
        return web.json(view.snapshot(request.query.get("version")))
