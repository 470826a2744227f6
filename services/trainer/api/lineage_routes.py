"""Read-only HTTP routes for lineage: of a version down to events, of an event up to versions, and version diffs.

Responses contain ids and counts, never text. Operator commands come by the log, not by these routes.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query

from services.trainer.api import event_trace, version_diff
from services.trainer.database import open_read_only
from services.trainer.settings import TrainerSettings
from services.trainer.versions import lineage
from services.trainer.versions.lineage import Json, LineRecords
from services.trainer.versions.publish import OpenReader, line_records
from shared.adapters.access_rules import needs
from shared.adapters.openapi import problems
from shared.errors import Malformed
from shared.events import Id, VersionName
from shared.ports import ArtifactStore

Version = Annotated[VersionName, Query(description="Name of a version, for example assistant@v3-1f2e3d4c.")]


@dataclass(frozen=True, slots=True)
class LineageQueries:
    """Queries that read the database, the runs' folders and the log at the time of the request. Thread-safe."""

    settings: TrainerSettings
    read: OpenReader
    store: ArtifactStore

    def version(self, name: str) -> Json:
        """Return the lineage of a version. Raises `UnknownVersion`."""
        with closing(open_read_only(self.settings.folder)) as db:
            return lineage.version_lineage(db, self.settings.runs, self._line_records(), name)

    def event(self, event_id: str, response_id: str | None) -> Json:
        """Return what each run did with a feedback event; `response_id` if several responses have that event id."""
        with closing(open_read_only(self.settings.folder)) as db:
            return event_trace.trace_event(
                db,
                self.settings.runs,
                self._line_records(),
                event_id,
                response_id,
                comments=self.settings.comment_mode,
                max_tokens=self.settings.largest_max_tokens,
            )

    def diff(self, one: str, other: str) -> Json:
        """Return the differences of two versions. Raises `UnknownVersion`."""
        return version_diff.diff_versions(
            self.settings.runs,
            self._line_records(),
            lambda version: self.store.fetch(version.ref.uri, version.ref.digest),
            one,
            other,
        )

    def _line_records(self) -> LineRecords:
        return line_records(self.read, self.settings.line)


def add_lineage_routes(app: FastAPI, queries: LineageQueries) -> FastAPI:
    """Add the routes to the trainer's app."""
    api = APIRouter(prefix="/api", responses=problems(403, 404, 422, 503))

    @api.get("/lineage")
    @needs("read")
    def lineage_of(
        version: Version | None = None,
        event_id: Annotated[Id | None, Query(description="Id of a feedback event.")] = None,
        response_id: Annotated[
            Id | None, Query(description="Required if several responses have an event with this id.")
        ] = None,
    ) -> Json:
        """Return the run, snapshot, batches and events of a version, or the runs and versions of an event."""
        if (version is None) == (event_id is None):
            raise Malformed("give exactly one of the parameters version and event_id")
        return queries.version(version) if version is not None else queries.event(str(event_id), response_id)

    @api.get("/diff")
    @needs("read")
    def diff(one: Version, other: Version) -> Json:
        """Return the differences of two versions in recipe, rows, figures, base and software."""
        return queries.diff(one, other)

    app.include_router(api)
    return app
