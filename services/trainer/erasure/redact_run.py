"""Deletes rows from a run's folder, together with all other files in it that may contain their text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from services.trainer.dataset import snapshot_files
from services.trainer.dataset.erasure_target import ErasureTarget, IsCurrent, targets_of
from services.trainer.dataset.filters import GroupedRow
from services.trainer.dataset.snapshot_files import HELDOUT_ROWS, SNAPSHOT, TRAIN_ROWS
from services.trainer.files import keep_only, remove, write_whole
from services.trainer.run.folder import CONFIG, GATE_RESULT, WITHOUT_TEXT


def affected_requests(
    folder: Path, targets: Sequence[ErasureTarget], is_current: IsCurrent
) -> dict[str, bool]:
    """Return the requests that delete rows of a complete snapshot: request_id -> whether any of these rows trained."""
    affected: dict[str, bool] = {}
    for name, trains in ((HELDOUT_ROWS, False), (TRAIN_ROWS, True)):
        for one in snapshot_files.read_rows(folder, name):
            affected |= {target.request_id: trains for target in targets_of(one.row, targets, is_current)}
    return dict(sorted(affected.items()))


def rows_of(folder: Path) -> Iterable[GroupedRow]:
    """Yield all rows of a complete snapshot, those that train and the held-out ones."""
    yield from snapshot_files.read_rows(folder, TRAIN_ROWS)
    yield from snapshot_files.read_rows(folder, HELDOUT_ROWS)


def redact(folder: Path, targets: Sequence[ErasureTarget], is_current: IsCurrent) -> None:
    """Delete the rows that the targets delete from the snapshot, and all other files that may contain text.

    `snapshot.json` keeps the digest of the dataset that was trained. May be repeated.
    """
    deleted = 0
    for name in (TRAIN_ROWS, HELDOUT_ROWS):
        rows = snapshot_files.read_rows(folder, name)
        kept = [one for one in rows if not targets_of(one.row, targets, is_current)]
        if len(kept) < len(rows):
            write_whole(folder / name, snapshot_files.to_parquet(kept))
            deleted += len(rows) - len(kept)
    if deleted:
        summary = json.loads((folder / SNAPSHOT).read_bytes())
        summary["erased"] = summary.get("erased", 0) + deleted
        write_whole(folder / SNAPSHOT, json.dumps(summary, sort_keys=True).encode())
    keep_only(folder, WITHOUT_TEXT | {TRAIN_ROWS, HELDOUT_ROWS})


def remove_leftovers(folder: Path) -> None:
    """Remove from the folder of a closed run what a crash left unfinished, which may be older than any erasure."""
    if not snapshot_files.is_complete(folder):
        keep_only(folder, WITHOUT_TEXT)
        return
    for path in folder.glob(".*"):
        remove(path)


def stable_run_of(folder: Path) -> str | None:
    """Return the run whose version a run was gated against first, or None."""
    file = folder / CONFIG
    stable = json.loads(file.read_bytes()).get("stable_run") if file.exists() else None
    return stable if isinstance(stable, str) else None


def gated_against(folder: Path) -> str | None:
    """Return the version that a run's version was gated against last, or None."""
    file = folder / GATE_RESULT
    version = json.loads(file.read_bytes()).get("gated_against") if file.exists() else None
    return version if isinstance(version, str) else None
