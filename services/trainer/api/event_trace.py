"""From a feedback event up to the versions: which were trained on it, measured with it, or had it held back, and why.

An event is named by its id within its response; where only its id is given, all responses that have one are told.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from services.trainer.core.recipe import CommentMode
from services.trainer.dataset import batch_table, snapshot
from services.trainer.dataset.filters import split_by_holdout, usable_rows
from services.trainer.dataset.snapshot import HELDOUT_ROWS, TRAIN_ROWS
from services.trainer.erasure import requests
from services.trainer.run import run_table
from services.trainer.run.run_table import Run
from services.trainer.versions.lineage import Json, LineRecords, event_id_json
from shared.events import ExampleRevision, from_ms, rfc3339
from shared.versions import ModelVersion, batch_position

NOWHERE = (
    "no batch here holds it: it may still wait in the processor, be replaced by a newer one, or be erased; "
    "`loopwright receipt RESPONSE EVENT` says what became of it"
)

GONE = "gone: its response's newest revision does not have it"
MEASURES = "usable: of a held-out user, so it measures versions and trains none"
USABLE = "usable: it may train"


def trace_event(
    db: sqlite3.Connection,
    folder: Path,
    published: LineRecords,
    event_id: str,
    response_id: str | None = None,
    *,
    comments: CommentMode = "hold",
) -> Json:
    """`folder` holds the runs' folders."""
    places = occurrences(db, event_id, response_id)
    retracted = retractions(db, event_id, response_id)
    responses = sorted({*places, *retracted})
    now = states_now(db, published.line, responses, comments)
    told = [
        _response(db, folder, published, (name, event_id), places.get(name, []))
        | {"now": now.get((name, event_id), GONE), "retracted": retracted.get(name)}
        for name in responses
    ]
    return {"event_id": event_id, "responses": told, "detail": None if told else NOWHERE}


def occurrences(
    db: sqlite3.Connection, event_id: str, response_id: str | None
) -> dict[str, list[tuple[str, ExampleRevision]]]:
    """response_id -> (batch_id, revision that has the event), oldest first."""
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
    db: sqlite3.Connection, line: str, responses: Sequence[str], comments: CommentMode
) -> dict[tuple[str, str], str]:
    """(response_id, event_id) -> what the checks of a single example say of it as it stands. Agreement among users,
    duplicates and shares are known within a run only."""
    wanted = set(responses)
    examples = [
        one
        for one in batch_table.current_examples(db, batch_table.through(db))
        if one.revision.response_id in wanted
    ]
    rows, held = usable_rows(examples, comments)
    training, measuring = split_by_holdout(line, rows)
    return (
        {(one.response_id, one.event_id): f"held: {one.reason}" for one in held}
        | {(row.response_id, row.event_id): MEASURES for row in measuring}
        | {(row.response_id, row.event_id): USABLE for row in training}
    )


def retractions(db: sqlite3.Connection, event_id: str, response_id: str | None) -> dict[str, Json]:
    """response_id -> the late retraction that took the event out, and the runs that it reached."""
    rows = db.execute(
        "SELECT request_id, response_id FROM erasures WHERE kind = 'retraction' AND event_id = ?1 "
        "AND (?2 IS NULL OR response_id = ?2)",
        (event_id, response_id),
    ).fetchall()
    return {
        response: {"request_id": request_id, "runs": requests.affected_runs(db, request_id)}
        for request_id, response in rows
    }


def _response(
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
                _of_version(version, published, [name for name, _ in found])
                for version in _without_run(db, published)
            ),
            *(
                _in_run(db, folder, published, run, event, found)
                for run in run_table.all_runs(db)
                if run.stage != "erased"
            ),
        ],
    }


def _without_run(db: sqlite3.Connection, published: LineRecords) -> list[ModelVersion]:
    """Versions whose runs the table does not have: it was lost with its disk, and made anew from the log."""
    known = {run.config.run_id for run in run_table.all_runs(db)}
    return [one for one in published.versions if one.run_id is not None and one.run_id not in known]


def _of_version(version: ModelVersion, published: LineRecords, batches: Sequence[str]) -> Json:
    """As `_in_run`, where all that is known is which batches were read."""
    read = version.dataset is not None and any(map(version.dataset.holds, batches))
    return {
        "run_id": version.run_id,
        "stage": "published",
        "began_at": rfc3339(version.created_at),
        "state": "not_known" if read else "not_read",
        "reason": "its batch was read; the run itself is lost" if read else "its batch came later",
        "version": version.ref.version,
        "verdict": version.gate.verdict if version.gate else None,
        "serving": published.serving(version.ref.version),
    }


def _in_run(
    db: sqlite3.Connection,
    folder: Path,
    published: LineRecords,
    run: Run,
    event: tuple[str, str],
    found: Sequence[tuple[str, ExampleRevision]],
) -> Json:
    """What one run did with it, and the version that came of the run, if one did."""
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
        "serving": published.serving(version.ref.version) if version else None,
    }


def state_in(
    db: sqlite3.Connection, folder: Path, run: Run, event: tuple[str, str], batches: Sequence[str]
) -> tuple[str, str]:
    """`trained`, `measured` (of a held-out user), `held`, `erased`, `not_used`, `not_read` or `not_known`; with a
    reason where there is one to give."""
    place = folder / run.config.run_id
    gone = _erased_in(db, run, event)
    if gone is not None:
        return "erased", f"was {'trained' if gone else 'measured'}, and taken out of the snapshot since"
    if not snapshot.is_complete(place):
        read = any(_read_by(run, batch) for batch in batches)
        return ("not_known", "the snapshot is not here") if read else ("not_read", "its batch came later")
    for name, state in ((TRAIN_ROWS, "trained"), (HELDOUT_ROWS, "measured")):
        if any((one.row.response_id, one.row.event_id) == event for one in snapshot.read_rows(place, name)):
            return (
                state,
                "of a held-out user: measures versions and trains none" if name == HELDOUT_ROWS else "",
            )
    held = [reason for *named, reason in snapshot.read_quarantine(place) if tuple(named) == event]
    if held:
        return "held", "; ".join(sorted(held))
    if not any(_read_by(run, batch) for batch in batches):
        return "not_read", "its batch came later"
    return "not_used", "a newer revision of its response took its place"


def _erased_in(db: sqlite3.Connection, run: Run, event: tuple[str, str]) -> bool | None:
    """Whether a late retraction of this very event took it out of what the run trained; None where none did."""
    found = db.execute(
        "SELECT MAX(trained) FROM erasures JOIN erasure_runs USING (request_id) "
        "WHERE kind = 'retraction' AND run_id = ? AND response_id = ? AND event_id = ?",
        (run.config.run_id, *event),
    ).fetchone()[0]
    return None if found is None else bool(found)


def _read_by(run: Run, batch_id: str) -> bool:
    partition, number = batch_position(batch_id)
    return run.config.through.get(str(partition), 0) >= number
