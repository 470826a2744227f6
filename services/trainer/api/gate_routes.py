"""Read-only HTTP routes for the gate report of a version: `GET /api/gate` as JSON, `GET /gate` as a page.

The examples in a report are users' text. They are returned only if the API listens on the loopback interface or
`LOOPWRIGHT_TRAINER_REPORT_TEXTS` is set. Otherwise, and after an erasure, a report has only its figures.
"""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import HTMLResponse

from services.trainer.database import open_read_only
from services.trainer.run import run_table
from services.trainer.run.folder import GATE_REPORT, GATE_RESULT
from services.trainer.settings import TrainerSettings
from shared.adapters.access_rules import needs
from shared.adapters.openapi import problems
from shared.errors import UnknownVersion
from shared.events import VersionName
from shared.request_origin import is_loopback
from shared.versions import GateReport

Json = dict[str, Any]
Version = Annotated[VersionName, Query(description="Name of a version, for example assistant@v3-1f2e3d4c.")]
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ERASED = "The examples were deleted by an erasure. The figures remain valid."
NOT_ALLOWED = (
    "The examples are users' text, and this API can be reached from other machines, so it does not return them. Read "
    "them in the run's folder, or set LOOPWRIGHT_TRAINER_REPORT_TEXTS=true and protect the API with your own proxy."
)


def load_report(settings: TrainerSettings, version: str) -> Json:
    """Return a version's report as `gate/report_json.py` writes it, with the version's name.

    If the examples were erased or must not be returned, the report has none, and the field `without` gives the reason.

    Raises:
        UnknownVersion: This trainer did not make the version, or its run's files are deleted.
    """
    folder = _run_folder(settings, version)
    identity = {"line": settings.line, "version": version, "run_id": folder.name}
    if may_return_texts(settings) and (folder / GATE_REPORT).exists():
        report: Json = json.loads((folder / GATE_REPORT).read_bytes())
        return report | identity
    if not (folder / GATE_RESULT).exists():
        raise UnknownVersion(f"the files of the run that made {version} were deleted")
    result = GateReport.model_validate_json((folder / GATE_RESULT).read_bytes())
    reason = ERASED if may_return_texts(settings) else NOT_ALLOWED
    return identity | {"report": result.model_dump(mode="json"), "without": reason}


def may_return_texts(settings: TrainerSettings) -> bool:
    """Return whether the API may return users' text."""
    return settings.report_texts or is_loopback(settings.host)


def _run_folder(settings: TrainerSettings, version: str) -> Path:
    with closing(open_read_only(settings.folder)) as db:
        run = run_table.by_version(db, version)
    if run is None:
        raise UnknownVersion(
            f"this trainer did not make {version}: check the name. `loopwright versions` lists "
            "the versions of its line; the base has no gate report"
        )
    return settings.runs / run.config.run_id


def add_gate_routes(app: FastAPI, settings: TrainerSettings) -> FastAPI:
    """Add the routes to the trainer's app and return it. The app handles errors."""
    router = APIRouter(responses=problems(403, 404, 422))

    @router.get("/api/gate")
    @needs("read")
    def get_gate_report(version: Version) -> Json:
        """Return verdict, reasons and figures, and the examples if they may be returned."""
        return load_report(settings, version)

    @router.get("/gate", response_class=HTMLResponse)
    @needs("read", page=True)
    def get_gate_page(version: Version) -> HTMLResponse:
        """Return the same as a page."""
        from services.trainer.gate.report_html import page  # noqa: PLC0415 - imports SciPy

        return HTMLResponse(page(load_report(settings, version)), headers=HEADERS)

    app.include_router(router)
    return app
