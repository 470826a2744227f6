"""What a reviser made of users' comments, kept so that nothing is asked twice: a file each, below the trainer's folder.

A file is written whole or not at all, names whose words it holds, and goes with them: an erasure finds it here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.trainer.dataset.erasure_target import ErasureTarget
from services.trainer.dataset.filters import QuarantinedRow, Row, first_fault
from services.trainer.files import write_whole
from shared.events import canonical_json, sha256

FOLDER = "revisions"
"""Beside the runs."""
PROMPT_VERSION = 1
"""Counts up when the questions to the reviser change: what an older question brought is asked for anew."""
NOT_REWRITTEN_YET = "comment: waits for the reviser, which has not answered yet"


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What became of a comment: the answer that follows it, or the reason why there is none."""

    answer: str | None = None
    reason: str | None = None


def key_of(row: Row, model: str) -> str:
    """What is asked, by content. Of each event apart: what two users said alike is erased apart."""
    told = [PROMPT_VERSION, model, row.identity, [list(m) for m in row.messages], row.original, row.answer]
    return sha256(canonical_json(told))


def load(folder: Path, row: Row, model: str) -> Rewrite | None:
    """What this comment brought before, if it was asked."""
    file = folder / f"{key_of(row, model)}.json"
    return _revised(json.loads(file.read_bytes())) if file.exists() else None


def store(folder: Path, row: Row, model: str, revised: Rewrite) -> None:
    """Durable when this returns."""
    told = {
        "response_id": row.response_id,
        "revision": row.revision,
        "event_id": row.event_id,
        "user_id": row.user_id,
        "asked_by": row.asked_by,
        "model": model,
        "answer": revised.answer,
        "reason": revised.reason,
    }
    write_whole(folder / f"{key_of(row, model)}.json", canonical_json(told))


def load_all(folder: Path, model: str) -> dict[str, Rewrite]:
    """Identity of the row -> what this model made of it."""
    told = (json.loads(file.read_bytes()) for file in sorted(folder.glob("*.json")))
    return {f"{one['response_id']}/{one['event_id']}": _revised(one) for one in told if one["model"] == model}


def _revised(told: Mapping[str, Any]) -> Rewrite:
    return Rewrite(told["answer"], told["reason"])


def apply_rewrites(
    rows: Iterable[Row], revised: Mapping[str, Rewrite]
) -> tuple[list[Row], list[QuarantinedRow]]:
    """Each comment with its revision in its place, and those without one. What a model wrote passes the same checks as
    what a person wrote."""
    kept: list[Row] = []
    held: list[QuarantinedRow] = []
    for row in rows:
        if row.kind != "comment":
            kept.append(row)
            continue
        found = revised.get(row.identity, Rewrite(reason=NOT_REWRITTEN_YET))
        revision = replace(row, answer=found.answer or "")
        reason = found.reason or first_fault(revision)
        if reason is None:
            kept.append(revision)
        else:
            held.append(QuarantinedRow(row.response_id, row.event_id, reason))
    return kept, held


def delete(folder: Path, targets: Sequence[ErasureTarget], stands: Callable[[Row], bool]) -> int:
    """Removes the revisions of what the targets take, unless it still stands, and what a crash left half written;
    returns how many."""
    for path in folder.glob(".*"):
        path.unlink(missing_ok=True)
    gone = 0
    for file in sorted(folder.glob("*.json")):
        row = _source(json.loads(file.read_bytes()))
        if any(target.means(row) for target in targets) and not stands(row):
            file.unlink(missing_ok=True)
            gone += 1
    return gone


def _source(told: Mapping[str, Any]) -> Row:
    """As erasures look at rows: who and what, without its text."""
    return Row(
        told["response_id"],
        told["revision"],
        told["event_id"],
        told["user_id"],
        (),
        "",
        "",
        0,
        asked_by=told["asked_by"],
    )
