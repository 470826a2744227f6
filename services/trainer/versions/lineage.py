"""Lineage of a version down to the events it was trained on: run, snapshot, batches, responses, events.

Contains ids, counts and users' pseudonyms, but no text. It describes the present: the log says which versions exist and
which erasures affected them, and the run's folder holds the rest of the snapshot.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from services.trainer.dataset import snapshot_files
from services.trainer.dataset.filters import GroupedRow
from services.trainer.run import run_table
from services.trainer.run.run_table import Run
from shared.errors import UnknownVersion
from shared.events import ErasureReport, from_ms, rfc3339
from shared.versions import DatasetRef, ModelVersion, RolloutRecord, batch_position

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LineRecords:
    """The log's records of one line: versions, the newest rollout record, and the trainer's erasure reports."""

    line: str
    versions: Sequence[ModelVersion] = ()
    rollout: RolloutRecord | None = None
    erasures: Sequence[ErasureReport] = ()

    def find(self, name: str) -> ModelVersion:
        """Return the version `name`. Raises `UnknownVersion`, which lists the newest versions."""
        version = next((version for version in self.versions if version.ref.version == name), None)
        if version is None:
            newest = ", ".join(version.ref.version for version in self.versions[-10:]) or "none yet"
            raise UnknownVersion(
                f"line {self.line} has no version {name}; the newest: {newest}. Check the name"
            )
        return version

    def of_run(self, run_id: str) -> ModelVersion | None:
        """Return the version that a run was published as, or None."""
        return next((version for version in self.versions if version.run_id == run_id), None)

    def erasures_of(self, name: str) -> list[ErasureReport]:
        """Return the reports of erasures that removed rows the version was trained on."""
        return [report for report in self.erasures if name in report.versions]

    def role(self, name: str) -> str | None:
        """Return `stable` or `canary`, as the newest rollout record orders it, or None if it is to serve no user."""
        record = self.rollout
        if record is None:
            return None
        if record.stable.version == name:
            return "stable"
        return "canary" if record.canary is not None and record.canary.version == name else None


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """State of the snapshot that a version was trained on.

    Attributes:
        rows: Rows that trained and are still there.
        heldout_rows: Number of rows of held-out users.
        complete: All rows that trained are there, unchanged, according to the digest.
        exists: The snapshot is on this trainer's disk.

    """

    rows: tuple[GroupedRow, ...]
    heldout_rows: int
    complete: bool
    exists: bool = True


MISSING_SNAPSHOT: Final = SnapshotState((), 0, complete=False, exists=False)


def read_snapshot_state(folder: Path, dataset: DatasetRef | None) -> SnapshotState:
    """Read a run's snapshot as it is now, and compare it with the dataset that was published."""
    if dataset is None or not snapshot_files.is_complete(folder):
        return MISSING_SNAPSHOT
    rows = tuple(snapshot_files.read_rows(folder))
    complete = snapshot_files.Snapshot(rows, (), ()).digest() == dataset.digest
    return SnapshotState(rows, len(snapshot_files.read_rows(folder, snapshot_files.HELDOUT_ROWS)), complete)


def why_not_reproducible(version: ModelVersion, state: SnapshotState, records: LineRecords) -> list[str]:
    """Return the reasons why a version cannot be trained again from its snapshot; empty if it can."""
    reasons = []
    erasures = records.erasures_of(version.ref.version)
    if erasures:
        kinds = Counter(report.kind for report in erasures)
        counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        reasons.append(f"rows that it was trained on were erased ({counts})")
    elif state.exists and not state.complete:
        reasons.append("its snapshot has changed since it was trained")
    if version.ref.kind != "base" and not state.exists:
        reasons.append("its snapshot is not on this trainer's disk")
    if not version.reproducible and not reasons:
        reasons.append("it was published as not reproducible")
    return reasons


def version_lineage(db: sqlite3.Connection, runs: Path, records: LineRecords, name: str) -> Json:
    """Return a version's lineage down to its events. `runs` contains the runs' folders. Raises `UnknownVersion`."""
    version = records.find(name)
    head = _head(version, records)
    if version.run_id is None:
        return head | {"reproducible": True, "detail": "the line's base: no user's data is in it"}
    state = read_snapshot_state(runs / version.run_id, version.dataset)
    reasons = why_not_reproducible(version, state, records)
    return head | {
        "reproducible": not reasons,
        "why_not_reproducible": reasons,
        "erasures": [
            {
                "request_id": report.request_id,
                "kind": report.kind,
                "completed_at": rfc3339(report.completed_at),
            }
            for report in records.erasures_of(name)
        ],
        "run": _run(version.run_id, run_table.by_id(db, version.run_id)),
        "dataset": _dataset(version, state),
        "counts": _counts(state.rows),
        "batches": batches_of(db, state.rows),
    }


def _head(version: ModelVersion, records: LineRecords) -> Json:
    gate = version.gate
    return {
        "version": version.ref.version,
        "kind": version.ref.kind,
        "digest": version.ref.digest,
        "base": version.base,
        "base_model": version.base_model,
        "created_at": rfc3339(version.created_at),
        "role": records.role(version.ref.version),
        "verdict": gate.verdict if gate else None,
        "gated_against": gate.gated_against if gate else None,
    }


def _run(run_id: str, run: Run | None) -> Json:
    """Return what the run table has. It has nothing about runs from before the trainer's disk was lost."""
    if run is None:
        return {"run_id": run_id, "known": False}
    return {
        "run_id": run_id,
        "known": True,
        "stage": run.stage,
        "reason": run.reason,
        "began_at": rfc3339(run.config.created_at),
        "recipe": run.config.recipe.model_dump(mode="json"),
        "against": run.config.stable.version,
    }


def _dataset(version: ModelVersion, state: SnapshotState) -> Json | None:
    if version.dataset is None:
        return None
    return version.dataset.model_dump(mode="json") | {
        "kept": state.exists,
        "whole": state.complete,
        "measuring": state.heldout_rows,
    }


def _counts(rows: Sequence[GroupedRow]) -> Json:
    return {
        "responses": len({grouped.row.response_id for grouped in rows}),
        "events": len({(grouped.row.response_id, grouped.row.event_id) for grouped in rows}),
        "users": len({grouped.row.user_id for grouped in rows}),
        "kinds": dict(sorted(Counter(grouped.row.kind for grouped in rows).items())),
    }


def batches_of(db: sqlite3.Connection, rows: Iterable[GroupedRow]) -> list[Json]:
    """Return the batches that contained these rows, each with its responses and their events.

    Rows whose batch is not known any more come last, under a batch without an id.
    """
    by_batch: dict[str | None, dict[tuple[str, int], list[GroupedRow]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for grouped in rows:
        revision = (grouped.row.response_id, grouped.row.revision)
        by_batch[batch_of(db, *revision)][revision].append(grouped)
    batch_ids = sorted((batch_id for batch_id in by_batch if batch_id is not None), key=batch_position)
    order: list[str | None] = [*batch_ids, None] if None in by_batch else [*batch_ids]
    return [_batch(db, batch_id, by_batch[batch_id]) for batch_id in order]


def batch_of(db: sqlite3.Connection, response_id: str, revision: int) -> str | None:
    """Return the batch that contains a revision of a response, of which there is at most one (I2), or None."""
    row = db.execute(
        "SELECT batch_id FROM rows WHERE response_id = ? AND revision = ? ORDER BY batch_id",
        (response_id, revision),
    ).fetchone()
    return None if row is None else str(row[0])


def _batch(
    db: sqlite3.Connection, batch_id: str | None, responses: dict[tuple[str, int], list[GroupedRow]]
) -> Json:
    batch = db.execute("SELECT rewrite, cut_ms FROM batches WHERE batch_id = ?", (batch_id,)).fetchone()
    return {
        "batch_id": batch_id,
        "rewrite": batch[0] if batch else None,
        "cut_at": rfc3339(from_ms(batch[1])) if batch else None,
        "users": len({grouped.row.user_id for rows in responses.values() for grouped in rows}),
        "events": sum(map(len, responses.values())),
        "responses": [
            {
                "response_id": response_id,
                "revision": revision,
                "events": [
                    {
                        "event_id": grouped.row.event_id,
                        "kind": grouped.row.kind,
                        "user": grouped.row.user_id,
                        "occurred_at": rfc3339(from_ms(grouped.row.occurred_ms)),
                    }
                    for grouped in sorted(rows, key=lambda grouped: grouped.row.event_id)
                ],
            }
            for (response_id, revision), rows in sorted(responses.items())
        ],
    }


def event_id_json(event_id: str) -> bytes:
    """Return an event id as it occurs in the JSON of an example, to search for it."""
    return json.dumps(event_id).encode()
