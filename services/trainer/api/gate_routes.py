"""`GET /api/gate` and `/gate` of the trainer: the gate's report of a version, as JSON and as a page for people.

The answers in it are users' text. They are told where the door listens on the loopback interface, or where
`LOOPWRIGHT_TRAINER_REPORT_TEXTS` says so; elsewhere, and after an erasure, the figures alone.
"""

from __future__ import annotations

import ipaddress
import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import HTMLResponse

from services.trainer.database import open_read_only
from services.trainer.gate.report_html import page
from services.trainer.run import run_table
from services.trainer.run.folder import GATE_REPORT, GATE_RESULT
from services.trainer.settings import TrainerSettings
from shared.adapters.origin_check import check_request_origin
from shared.errors import UnknownVersion
from shared.events import VersionName
from shared.versions import GateReport

Json = dict[str, Any]
Version = Annotated[VersionName, Query(description="such as assistant@v3-1f2e3d4c")]
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ERASED = (
    "They are not kept: an erasure took out what they were made from, or an older release made this version. "
    "The figures stand."
)
NOT_HERE = (
    "The answers are users' text, and this door is open beyond the machine it runs on: they are told where "
    "LOOPWRIGHT_TRAINER_REPORT_TEXTS=true, behind a door of your own. They lie with the run's files."
)


def gate_report(settings: TrainerSettings, version: str) -> Json:
    """As `gate/report_json.py` writes it, with the version's name; without texts (and `without` says why) where they
    are gone or may not be shown. Raises `UnknownVersion`."""
    folder = _folder(settings, version)
    known = {"line": settings.line, "version": version, "run_id": folder.name}
    if shows_texts(settings) and (folder / GATE_REPORT).exists():
        whole: Json = json.loads((folder / GATE_REPORT).read_bytes())
        return whole | known
    if not (folder / GATE_RESULT).exists():
        raise UnknownVersion(f"the files of the run that made {version} are not here any more")
    report = GateReport.model_validate_json((folder / GATE_RESULT).read_bytes())
    without = ERASED if shows_texts(settings) else NOT_HERE
    return known | {"report": report.model_dump(mode="json"), "without": without}


def shows_texts(settings: TrainerSettings) -> bool:
    return settings.report_texts or settings.host == "localhost" or _is_loopback(settings.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _folder(settings: TrainerSettings, version: str) -> Path:
    with closing(open_read_only(settings.folder)) as db:
        made = run_table.by_version(db, version)
    if made is None:
        raise UnknownVersion(
            f"{version} was not made by this trainer: `loopwright versions` lists those of its line; "
            "its base has no gate"
        )
    return settings.runs / made.config.run_id


def add_gate_routes(app: FastAPI, settings: TrainerSettings) -> FastAPI:
    """Adds the routes to the trainer's app, which knows what becomes of errors."""

    async def own(request: Request) -> None:
        check_request_origin(request.headers, settings.hosts)

    api = APIRouter(dependencies=[Depends(own)])

    @api.get("/api/gate")
    def told(version: Version) -> Json:
        """Verdict, reasons, figures; and, where they are told, all items with what both versions answered."""
        return gate_report(settings, version)

    @api.get("/gate")
    def shown(version: Version) -> HTMLResponse:
        """The same as a page."""
        return HTMLResponse(page(gate_report(settings, version)), headers=HEADERS)

    app.include_router(api)
    return app
