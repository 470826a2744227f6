"""The trainer's HTTP app: lineage and gate reports, read-only."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI

from services.trainer.api.gate_routes import add_gate_routes
from services.trainer.api.lineage_routes import LineageQueries, add_lineage_routes
from shared.adapters.http import add_service_routes
from shared.adapters.openapi import publish_openapi
from shared.telemetry import Readiness

DESCRIPTION: Final = "Read what a version was trained on, how two versions differ, and the gate's reports."


def trainer_app(queries: LineageQueries, readiness: Readiness) -> FastAPI:
    """Return the app. `queries` answer the requests; `/readyz` reports `readiness`."""
    app = FastAPI(title="Loopwright trainer", version="1", docs_url=None, redoc_url=None)
    publish_openapi(add_service_routes(app, readiness), DESCRIPTION)
    return add_gate_routes(add_lineage_routes(app, queries), queries.settings)
