"""Traces a feedback event to the runs and versions that trained on it, evaluated with it or quarantined it, and why.

An event id is unique within its response. If only the event id is given, all responses with such an event are traced.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset import batch_table, snapshot_files
from services.trainer.dataset.row_selection import split_by_holdout, usable_rows
from services.trainer.dataset.snapshot_files import HELDOUT_ROWS, TRAIN_ROWS
from services.trainer.erasure import requests
from services.trainer.run import run_table
from services.trainer.run.run_table import Run
from services.trainer.versions.lineage import Json, LineRecords, event_id_json
from shared.events import ExampleRevision, from_ms, rfc3339
from shared.versions import ModelVersion, batch_position

NOT_FOUND: Final = (
    "no batch contains it: it may still be in the processor, replaced by a newer event, or erased; "
    "`loopwright receipt RESPONSE EVENT` shows its outcome"
)
GONE: Final = "gone: the newest revision of its response does not contain it"
EVALUATES: Final = "usable: of a held-out user, so it evaluates versions and never trains"
USABLE: Final = "usable: it may train"
LATER: Final = "its batch came later"


def trace_event(
    db: sqlite3.Connection,
    folder: Path,
    published: LineRecords,
    event_id: str,
    response_id: str | None = None,
    *,
    comments: CommentMode = "hold",
    max_tokens: int | None = None,
) -> Json:
    """Return the trace of an event. `folder` contains the runs' folders."""
    found = occurrences(db, event_id, response_id)
    retracted = retractions(db, event_id, response_id)
    responses = sorted({*found, *retracted})
    now = states_now(db, published.line, responses, comments, max_tokens)
    traces = [
        _trace_response(db, folder, published, (name, event_id), found.get(name, []))
        | {"now": now.get((name, event_id), GONE), "retracted": retracted.get(name)}
        for name in responses
    ]
    return {"event_id": event_id, "responses": traces, "detail": None if traces else NOT_FOUND}


def occurrences(
    db: sqlite3.Connection, event_id: str, response_id: str | None
) -> dict[str, list[tuple[str, ExampleRevision]]]:
    """Return response_id -> (batch_id, revision that contains the event), oldest first."""
    rows = db.execute(
        "SELECT batch_id, example FROM rows WHERE (?1 IS NULL OR response_id = ?1) AND instr(example, ?2) "
        "ORDER BY response_id, revision",
        (response_id, event_id_json(event_id)),
    )
    found: dict[str, list[tuple[str, ExampleRevision]]] = {}
    for batch_id, blob in rows:
        revision = ExampleRevision.from_json(blob)
        if any(signal.event_id == event_id for signal in revision.signals):
            found.setdefault(revision.response_id, []).append((batch_id, revision))
    return found


def states_now(
    db: sqlite3.Connection,
    line: str,
    responses: Sequence[str],
    comments: CommentMode,
    max_tokens: int | None = None,
) -> dict[tuple[str, str], str]:
    """Return (response_id, event_id) -> result of the checks of single rows for the current examples.

    Agreement of users, and their shares, are determined within a run only.
    """
    current = (batch_table.current_example(db, response_id) for response_id in responses)
    rows, quarantined = usable_rows(
        [example for example in current if example is not None], comments, max_tokens=max_tokens
    )
    training, heldout = split_by_holdout(line, rows)
    return (
        {(one.response_id, one.event_id): f"held: {one.reason}" for one in quarantined}
        | {(row.response_id, row.event_id): EVALUATES for row in heldout}
        | {(row.response_id, row.event_id): USABLE for row in training}
    )


def retractions(db: sqlite3.Connection, event_id: str, response_id: str | None) -> dict[str, Json]:
    """Return response_id -> the late retraction that deleted the event, and the runs that it affected."""
    rows = db.execute(
        "SELECT request_id, response_id FROM erasures WHERE kind = 'retraction' AND event_id = ?1 "
        "AND (?2 IS NULL OR response_id = ?2)",
        (event_id, response_id),
    ).fetchall()
    return {
        response: {"request_id": request_id, "runs": requests.affected_runs(db, request_id)}
        for request_id, response in rows
    }


def _trace_response(
    db: sqlite3.Connection,
    folder: Path,
    published: LineRecords,
    event: tuple[str, str],
    found: Sequence[tuple[str, ExampleRevision]],
) -> Json:
    response_id, event_id = event
    signal = next((s for _, r in reversed(found) for s in r.signals if s.event_id == event_id), None)
    return {
        "response_id": response_id,
        "kind": signal.kind if signal else None,
        "user": signal.user_id if signal else None,
        "occurred_at": rfc3339(signal.occurred_at) if signal else None,
        "batches": [{"batch_id": batch_id, "revision": revision.revision} for batch_id, revision in found],
        "runs": [
            *(
                _trace_version(version, published, [name for name, _ in found])
                for version in _versions_without_run(db, published)
            ),
            *(
                _trace_run(db, folder, published, run, event, found)
                for run in run_table.all_runs(db)
                if run.stage != "erased"
            ),
        ],
    }


def _versions_without_run(db: sqlite3.Connection, published: LineRecords) -> list[ModelVersion]:
    """Return the versions whose runs are not in the database, because it was lost and rebuilt from the log."""
    known = {run.config.run_id for run in run_table.all_runs(db)}
    return [one for one in published.versions if one.run_id is not None and one.run_id not in known]


def _trace_version(version: ModelVersion, published: LineRecords, batches: Sequence[str]) -> Json:
    """Return the same as `_trace_run`, from the batches that the version read."""
    read = version.dataset is not None and any(map(version.dataset.holds, batches))
    return {
        "run_id": version.run_id,
        "stage": "published",
        "began_at": rfc3339(version.created_at),
        "state": "not_known" if read else "not_read",
        "reason": "its batch was read, but the run's data is lost" if read else LATER,
        "version": version.ref.version,
        "verdict": version.gate.verdict if version.gate else None,
        "role": published.role(version.ref.version),
    }


def _trace_run(
    db: sqlite3.Connection,
    folder: Path,
    published: LineRecords,
    run: Run,
    event: tuple[str, str],
    found: Sequence[tuple[str, ExampleRevision]],
) -> Json:
    """Return what one run did with the event, and the version that the run made, if any."""
    state, reason = state_in(db, folder, run, event, [batch_id for batch_id, _ in found])
    version = published.of_run(run.config.run_id)
    return {
        "run_id": run.config.run_id,
        "stage": run.stage,
        "began_at": rfc3339(from_ms(run.config.created_ms)),
        "state": state,
        "reason": reason,
        "version": version.ref.version if version else None,
        "verdict": version.gate.verdict if version and version.gate else None,
        "role": published.role(version.ref.version) if version else None,
    }


def state_in(
    db: sqlite3.Connection, folder: Path, run: Run, event: tuple[str, str], batches: Sequence[str]
) -> tuple[str, str]:
    """Return the state of an event in a run and the reason.

    States: `trained`, `measured` (held-out user), `held` (quarantined), `erased`, `not_used`, `not_read`, `not_known`.
    """
    run_folder = folder / run.config.run_id
    had_trained = _trained_before_erasure(db, run, event)
    if had_trained is not None:
        return "erased", f"was {'trained' if had_trained else 'measured'}, then deleted from the snapshot"
    if not snapshot_files.is_complete(run_folder):
        read = any(_read_by(run, batch) for batch in batches)
        return ("not_known", "the snapshot is lost") if read else ("not_read", LATER)
    for name, state in ((TRAIN_ROWS, "trained"), (HELDOUT_ROWS, "measured")):
        if any(
            (one.row.response_id, one.row.event_id) == event
            for one in snapshot_files.read_rows(run_folder, name)
        ):
            return (
                state,
                "of a held-out user: evaluates versions and never trains" if name == HELDOUT_ROWS else "",
            )
    reasons = [reason for *ids, reason in snapshot_files.read_quarantine(run_folder) if tuple(ids) == event]
    if reasons:
        return "held", "; ".join(sorted(reasons))
    if not any(_read_by(run, batch) for batch in batches):
        return "not_read", LATER
    return "not_used", "a newer revision of its response replaced it"


def _trained_before_erasure(db: sqlite3.Connection, run: Run, event: tuple[str, str]) -> bool | None:
    """Return whether the run trained on an event that was retracted later; None if it was not retracted here."""
    trained = db.execute(
        "SELECT MAX(trained) FROM erasures JOIN erasure_runs USING (request_id) "
        "WHERE kind = 'retraction' AND run_id = ? AND response_id = ? AND event_id = ?",
        (run.config.run_id, *event),
    ).fetchone()[0]
    return None if trained is None else bool(trained)


def _read_by(run: Run, batch_id: str) -> bool:
    partition, number = batch_position(batch_id)
    return run.config.through.get(str(partition), 0) >= number
