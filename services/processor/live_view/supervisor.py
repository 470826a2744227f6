"""Keeps a live view beside the engine: started after it, begun anew where it failed, shown by `/tallies`."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog
from faust.types.web import Request, Response
from faust.web import View
from mode import Service

from services.processor.live_view.agent import LiveView
from services.processor.live_view.sums import Sums
from shared.stream.engine import Engine
from shared.stream.faust_host import EngineApp
from shared.telemetry import LIVE_VIEW_BEHIND, LIVE_VIEW_FAILURES

log = structlog.get_logger(__name__)

LOOK_S = 0.25
MEASURE_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
SETTLED_S = 60.0
"""A view that lived so long begins anew after the first pause again."""
START_S, STOP_S = 30.0, 3.0


class LiveKeeper:
    """What it says may be read at any time. Nothing that happens to the view raises here, or reaches the engine."""

    def __init__(self, engine: Engine, new_view: Callable[[], LiveView]) -> None:
        """`new_view` makes one life of the view."""
        self._engine = engine
        self._new_view = new_view
        self._view: LiveView | None = None
        self._busy = False
        self._trouble = ""
        self.failures = 0

    def detail(self) -> str:
        """For `/readyz`."""
        view = self._view
        if view is None:
            return f"starts anew after: {self._trouble}" if self._trouble else "not started yet"
        if view.behind is None:
            return "starting"
        waits = ", waits for the engine" if self._busy else ""
        return f"behind by {view.behind} records{waits}" if view.behind or waits else "ok"

    def answer(self, version: str | None = None) -> dict[str, Any]:
        """What `/tallies` shows. `behind` is null while that is not known."""
        view = self._view
        counted, sums = (view.counted, view.sums) if view is not None else (Counter[str](), Sums())
        return {
            "live_view": self.detail(),
            "failures": self.failures,
            "behind": None if view is None else view.behind,
            "records": {name: counted[name] for name in ("read", "unreadable", "left_out")},
            **sums.shown(version),
        }

    async def keep(self, service: Service) -> None:
        """One life of the view after another, until `service` stops."""
        pause = FIRST_PAUSE_S
        while not service.should_stop:
            self._look()
            if not self._engine.ready:
                await service.sleep(LOOK_S)
                continue
            began = time.monotonic()
            await self._live(service)
            if time.monotonic() > began + SETTLED_S:
                pause = FIRST_PAUSE_S
            await service.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _live(self, service: Service) -> None:
        """One life, until it fails or `service` stops."""
        view = None
        try:
            view = self._view = self._new_view()
            async with asyncio.timeout(START_S):
                await view.app.start()
            await self._watch(service, view)
        except Exception as error:  # noqa: BLE001 - the view's end, whatever it was, is never the engine's
            self._note(error)
        finally:
            self._view = None
            if view is not None:
                await _stopped(view)

    async def _watch(self, service: Service, view: LiveView) -> None:
        """Raises what ended the view."""
        next_measure = 0.0
        while not service.should_stop:
            if view.failure is not None or view.app.should_stop:
                raise view.failure or view.app.crash_reason or RuntimeError("the Faust application ended")
            self._look()
            if time.monotonic() >= next_measure:
                next_measure = time.monotonic() + MEASURE_S
                async with asyncio.timeout(START_S):
                    await view.measure()
                if view.behind is not None:
                    LIVE_VIEW_BEHIND.set(view.behind)
            await service.sleep(LOOK_S)

    def _look(self) -> None:
        """While the engine has more before it than one slice, all of the process' time is its own."""
        engine = self._engine
        waiting = sum(sum(partition.lag.values()) for partition in engine.partitions())
        self._busy = engine.state == "restoring" or waiting > engine.config.slice_records
        if self._view is not None:
            (self._view.may_read.clear if self._busy else self._view.may_read.set)()

    def _note(self, error: BaseException) -> None:
        self.failures += 1
        self._trouble = f"{type(error).__name__}: {error}"[:500]
        LIVE_VIEW_FAILURES.inc()
        log.warning("the live view failed and starts anew", error=self._trouble)


async def _stopped(view: LiveView) -> None:
    try:
        async with asyncio.timeout(STOP_S):
            await view.app.stop()
    except Exception as error:  # noqa: BLE001 - it is given up; it only ever read
        log.warning("the live view did not stop in order", error=f"{type(error).__name__}: {error}")


def attach(app: EngineApp, keeper: LiveKeeper) -> None:
    """The view lives as long as the worker; `/tallies` shows it, `/readyz` names it."""

    class Live(Service):
        """Added after the engine's host, so started after it and stopped before it."""

        @Service.task
        async def _keep(self) -> None:
            await keeper.keep(self)

    app.service(Live)
    app.readiness_details["live_view"] = keeper.detail

    @app.page("/tallies")
    async def tallies(view: View, request: Request) -> Response:
        return view.json(keeper.answer(request.query.get("version")))
