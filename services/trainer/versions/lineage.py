"""From a version down to the events that it was trained from: run, snapshot, batches, responses, events.

Names and counts alone; no text. Users are the pseudonyms that the log has. What is told is what is true now: the log
says which versions there are and what erasures reached, the run's folder what is left of its snapshot.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.trainer.dataset import snapshot
from services.trainer.dataset.filters import Grouped
from services.trainer.run import run_table
from services.trainer.run.run_table import Run
from shared.errors import UnknownVersion
from shared.events import ErasureReport, from_ms, rfc3339
from shared.versions import DatasetRef, ModelVersion, RolloutRecord, batch_position

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LineRecords:
    """What the log has of one line. `rollout`: its newest record. `erasures`: the trainer's own reports."""

    line: str
    versions: Sequence[ModelVersion] = ()
    rollout: RolloutRecord | None = None
    erasures: Sequence[ErasureReport] = ()

    def find(self, name: str) -> ModelVersion:
        """Raises `UnknownVersion`, saying which there are."""
        found = next((version for version in self.versions if version.ref.version == name), None)
        if found is None:
            known = ", ".join(version.ref.version for version in self.versions[-10:]) or "none yet"
            raise UnknownVersion(
                f"the trainer of line {self.line} knows no version {name}; the newest: {known}"
            )
        return found

    def of_run(self, run_id: str) -> ModelVersion | None:
        return next((version for version in self.versions if version.run_id == run_id), None)

    def erased_from(self, name: str) -> list[ErasureReport]:
        """The requests that took out of its snapshot what the version was trained from."""
        return [report for report in self.erasures if name in report.versions]

    def serving(self, name: str) -> str | None:
        """`stable`, `canary`, or None where no user sees it."""
        record = self.rollout
        if record is None:
            return None
        if record.stable.version == name:
            return "stable"
        return "canary" if record.canary is not None and record.canary.version == name else None


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """What is left of the snapshot of a version. `whole`: all that was trained, by its digest."""

    rows: tuple[Grouped, ...]
    measuring: int
    whole: bool
    there: bool = True


MISSING_SNAPSHOT = SnapshotState((), 0, whole=False, there=False)


def read_snapshot_state(folder: Path, dataset: DatasetRef | None) -> SnapshotState:
    """Reads a run's snapshot as it is now."""
    if dataset is None or not snapshot.is_complete(folder):
        return MISSING_SNAPSHOT
    rows = tuple(snapshot.read_rows(folder))
    whole = snapshot.Snapshot(rows, (), ()).digest() == dataset.digest
    return SnapshotState(rows, len(snapshot.read_rows(folder, snapshot.HELD_OUT)), whole)


def why_not_reproducible(version: ModelVersion, left: SnapshotState, published: LineRecords) -> list[str]:
    """Empty where it can be trained again from its snapshot."""
    reasons = []
    erasures = published.erased_from(version.ref.version)
    if erasures:
        kinds = Counter(report.kind for report in erasures)
        told = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        reasons.append(f"rows that it was trained from were erased ({told})")
    elif left.there and not left.whole:
        reasons.append("its snapshot is not the one that it was trained from any more")
    if version.ref.kind != "base" and not left.there:
        reasons.append("its snapshot is not on this trainer's disk")
    if not version.reproducible and not reasons:
        reasons.append("it was published as one that cannot be")
    return reasons


def version_lineage(db: sqlite3.Connection, folder: Path, published: LineRecords, name: str) -> Json:
    """`folder` holds the runs' folders. Raises `UnknownVersion`."""
    version = published.find(name)
    told = _head(version, published)
    if version.run_id is None:
        return told | {
            "reproducible": True,
            "detail": "the line's base: nothing of users is in it",
        }
    left = read_snapshot_state(folder / version.run_id, version.dataset)
    reasons = why_not_reproducible(version, left, published)
    run = run_table.by_id(db, version.run_id)
    return told | {
        "reproducible": not reasons,
        "why_not_reproducible": reasons,
        "erasures": [
            {
                "request_id": report.request_id,
                "kind": report.kind,
                "completed_at": rfc3339(report.completed_at),
            }
            for report in published.erased_from(name)
        ],
        "run": _run(version.run_id, run),
        "dataset": _dataset(version, left),
        "counts": _counts(left.rows),
        "batches": batches_of(db, left.rows),
    }


def _head(version: ModelVersion, published: LineRecords) -> Json:
    gate = version.gate
    return {
        "version": version.ref.version,
        "kind": version.ref.kind,
        "digest": version.ref.digest,
        "base": version.base,
        "base_model": version.base_model,
        "created_at": rfc3339(version.created_at),
        "serving": published.serving(version.ref.version),
        "verdict": gate.verdict if gate else None,
        "gated_against": gate.gated_against if gate else None,
    }


def _run(run_id: str, run: Run | None) -> Json:
    """What the table has of it: nothing after the trainer's disk was lost."""
    if run is None:
        return {"run_id": run_id, "known": False}
    return {
        "run_id": run_id,
        "known": True,
        "stage": run.stage,
        "began_at": rfc3339(run.config.created_at),
        "recipe": run.config.recipe.model_dump(mode="json"),
        "against": run.config.stable.version,
    }


def _dataset(version: ModelVersion, left: SnapshotState) -> Json | None:
    if version.dataset is None:
        return None
    return version.dataset.model_dump(mode="json") | {
        "kept": left.there,
        "whole": left.whole,
        "measuring": left.measuring,
    }


def _counts(rows: Sequence[Grouped]) -> Json:
    return {
        "responses": len({one.row.response_id for one in rows}),
        "events": len({(one.row.response_id, one.row.event_id) for one in rows}),
        "users": len({one.row.user_id for one in rows}),
        "kinds": dict(sorted(Counter(one.row.kind for one in rows).items())),
    }


def batches_of(db: sqlite3.Connection, rows: Iterable[Grouped]) -> list[Json]:
    """The batches that brought these rows, each with its responses, each with its events. A row whose batch is not
    known any more stands under a batch without a name."""
    grouped: dict[str | None, dict[tuple[str, int], list[Grouped]]] = defaultdict(lambda: defaultdict(list))
    for one in rows:
        place = (one.row.response_id, one.row.revision)
        grouped[batch_of(db, *place)][place].append(one)
    named = sorted((name for name in grouped if name is not None), key=batch_position)
    order: list[str | None] = [*named, None] if None in grouped else [*named]
    return [_batch(db, name, grouped[name]) for name in order]


def batch_of(db: sqlite3.Connection, response_id: str, revision: int) -> str | None:
    """The batch that holds a revision of a response (I2: there is at most one)."""
    found = db.execute(
        "SELECT batch_id FROM rows WHERE response_id = ? AND revision = ? ORDER BY batch_id",
        (response_id, revision),
    ).fetchone()
    return None if found is None else str(found[0])


def _batch(db: sqlite3.Connection, name: str | None, responses: dict[tuple[str, int], list[Grouped]]) -> Json:
    found = db.execute("SELECT rewrite, cut_ms FROM batches WHERE batch_id = ?", (name,)).fetchone()
    return {
        "batch_id": name,
        "rewrite": found[0] if found else None,
        "cut_at": rfc3339(from_ms(found[1])) if found else None,
        "users": len({one.row.user_id for rows in responses.values() for one in rows}),
        "events": sum(map(len, responses.values())),
        "responses": [
            {
                "response_id": response_id,
                "revision": revision,
                "events": [
                    {
                        "event_id": one.row.event_id,
                        "kind": one.row.kind,
                        "user": one.row.user_id,
                        "occurred_at": rfc3339(from_ms(one.row.occurred_ms)),
                    }
                    for one in sorted(rows, key=lambda one: one.row.event_id)
                ],
            }
            for (response_id, revision), rows in sorted(responses.items())
        ],
    }


def event_id_json(event_id: str) -> bytes:
    """How an event's id stands in the JSON of an example."""
    return json.dumps(event_id).encode()
