"""What the trainer answers over HTTP: lineage, both ways, and what two versions differ in. It changes nothing;
orders come by the log. Names and counts, never a text."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse

from services.trainer.api import event_trace, version_diff
from services.trainer.database import open_read_only
from services.trainer.settings import TrainerSettings
from services.trainer.versions import lineage
from services.trainer.versions.lineage import Json, LineRecords
from services.trainer.versions.publish import OpenReader, line_records
from shared.adapters.http import problem
from shared.adapters.origin_check import Forbidden, check_request_origin
from shared.errors import Malformed
from shared.events import Id, VersionName
from shared.ports import ArtifactStore

Version = Annotated[VersionName, Query(description="such as assistant@v3-1f2e3d4c")]


@dataclass(frozen=True, slots=True)
class LineageQueries:
    """Each is made from the disk and the log as they are then. Thread-safe."""

    settings: TrainerSettings
    read: OpenReader
    store: ArtifactStore

    def down(self, version: str) -> Json:
        with closing(open_read_only(self.settings.folder)) as db:
            return lineage.version_lineage(db, self.settings.runs, self._published(), version)

    def up(self, event_id: str, response_id: str | None) -> Json:
        with closing(open_read_only(self.settings.folder)) as db:
            return event_trace.trace_event(
                db,
                self.settings.runs,
                self._published(),
                event_id,
                response_id,
                comments=self.settings.comment_mode,
            )

    def diff(self, one: str, other: str) -> Json:
        return version_diff.diff_versions(
            self.settings.runs,
            self._published(),
            lambda version: self.store.fetch(version.ref.uri, version.ref.digest),
            one,
            other,
        )

    def _published(self) -> LineRecords:
        return line_records(self.read, self.settings.line)


def add_lineage_routes(app: FastAPI, answers: LineageQueries) -> FastAPI:
    """Adds the routes to the trainer's app."""

    async def own(request: Request) -> None:
        check_request_origin(request.headers, answers.settings.hosts)

    @app.exception_handler(Forbidden)
    async def forbidden(_: Request, error: Forbidden) -> JSONResponse:
        return problem(403, error.code, "Forbidden", str(error))

    api = APIRouter(prefix="/api", dependencies=[Depends(own)])

    @api.get("/lineage")
    def told(
        version: Version | None = None,
        event_id: Annotated[Id | None, Query()] = None,
        response_id: Annotated[
            Id | None, Query(description="where the event's id alone is not enough")
        ] = None,
    ) -> Json:
        """Of a version: run, snapshot, batches, responses, events. Of an event: runs and versions."""
        if (version is None) == (event_id is None):
            raise Malformed("say which: version, or event_id")
        return answers.down(version) if version is not None else answers.up(str(event_id), response_id)

    @api.get("/diff")
    def diff(one: Version, other: Version) -> Json:
        """Recipe, rows, figures, base and software of two versions."""
        return answers.diff(one, other)

    app.include_router(api)
    return app
