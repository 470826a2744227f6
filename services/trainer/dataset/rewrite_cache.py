"""Cache of the rewrites that a stronger model made from comments, so that each comment is sent once.

One file per comment, written atomically. Each file names whose content it holds, so an erasure finds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from services.trainer.dataset.erasure_target import (
    ErasureTarget,
    IsCurrent,
    row_for_erasure,
    targets_of,
)
from services.trainer.dataset.filters import QuarantinedRow, Row, first_fault
from services.trainer.files import write_whole
from shared.composed_ids import join_ids
from shared.events import canonical_json, sha256
from shared.feedback_kinds import KIND_BY_NAME

FOLDER: Final = "revisions"
"""Name of the cache's folder, next to the folder of runs."""
PROMPT_VERSION: Final = 1
"""Increases when the instructions to the rewriter change, so that older rewrites are not used."""
NOT_REWRITTEN_YET: Final = "comment: waiting for the reviser"


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Result for one comment: the rewritten answer, or the reason why there is none."""

    answer: str | None = None
    reason: str | None = None


def key_of(row: Row, model: str) -> str:
    """Return the content hash of a request. It includes the event, so that equal comments are erased separately."""
    messages = [list(message) for message in row.messages]
    return sha256(canonical_json([PROMPT_VERSION, model, row.identity, messages, row.original, row.answer]))


def load(folder: Path, row: Row, model: str) -> Rewrite | None:
    """Return the cached result for a comment, or None."""
    file = folder / f"{key_of(row, model)}.json"
    return _rewrite(json.loads(file.read_bytes())) if file.exists() else None


def store(folder: Path, row: Row, model: str, rewrite: Rewrite) -> None:
    """Store the result for a comment. It is durable when this returns."""
    entry = {
        "response_id": row.response_id,
        "revision": row.revision,
        "event_id": row.event_id,
        "user_id": row.user_id,
        "asked_by": row.asked_by,
        "model": model,
        "answer": rewrite.answer,
        "reason": rewrite.reason,
    }
    write_whole(folder / f"{key_of(row, model)}.json", canonical_json(entry))


def load_all(folder: Path, model: str) -> dict[str, Rewrite]:
    """Return the results of this model for all comments, by the identity of the row."""
    entries = (json.loads(file.read_bytes()) for file in sorted(folder.glob("*.json")))
    return {
        join_ids(entry["response_id"], entry["event_id"]): _rewrite(entry)
        for entry in entries
        if entry["model"] == model
    }


def _rewrite(entry: Mapping[str, Any]) -> Rewrite:
    return Rewrite(entry["answer"], entry["reason"])


def apply_rewrites(
    rows: Iterable[Row], rewrites: Mapping[str, Rewrite], *, max_tokens: int | None = None
) -> tuple[list[Row], list[QuarantinedRow]]:
    """Replace each comment by its rewrite; return the rows, and the comments without a usable rewrite.

    A rewrite must pass the checks that a user's correction must pass.
    """
    kept: list[Row] = []
    quarantined: list[QuarantinedRow] = []
    for row in rows:
        if not KIND_BY_NAME[row.kind].is_remark:
            kept.append(row)
            continue
        rewrite = rewrites.get(row.identity, Rewrite(reason=NOT_REWRITTEN_YET))
        rewritten = replace(row, answer=rewrite.answer or "")
        reason = rewrite.reason or first_fault(rewritten, max_tokens=max_tokens)
        if reason is None:
            kept.append(rewritten)
        else:
            quarantined.append(QuarantinedRow.of(row, reason))
    return kept, quarantined


def redact(folder: Path, targets: Sequence[ErasureTarget], is_current: IsCurrent) -> int:
    """Delete the rewrites that the targets delete, and unfinished files; return the number of rewrites deleted."""
    for path in folder.glob(".*"):
        path.unlink(missing_ok=True)
    deleted = 0
    for file in sorted(folder.glob("*.json")):
        entry = json.loads(file.read_bytes())
        names = ("response_id", "revision", "event_id", "user_id", "asked_by")
        if targets_of(row_for_erasure(*(entry[name] for name in names)), targets, is_current):
            file.unlink(missing_ok=True)
            deleted += 1
    return deleted
