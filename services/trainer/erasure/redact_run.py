"""Taking rows out of a run's folder, and with them whatever else in it may hold their text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.trainer.dataset import snapshot
from services.trainer.dataset.erasure_target import ErasureTarget, IsCurrent
from services.trainer.dataset.filters import GroupedRow, Row
from services.trainer.dataset.snapshot import HELDOUT_ROWS, SNAPSHOT, TRAIN_ROWS
from services.trainer.files import keep_only, remove, write_whole
from services.trainer.run.folder import CONFIG, WITHOUT_TEXT


@dataclass(slots=True)
class AffectedRows:
    """The rows of one snapshot that are to go: the requests that take them out of either part."""

    trained: set[str] = field(default_factory=set)
    measured: set[str] = field(default_factory=set)

    def held(self) -> list[tuple[str, bool]]:
        """(request_id, whether it trained)"""
        return [
            (request_id, request_id in self.trained) for request_id in sorted(self.trained | self.measured)
        ]


def find_affected(folder: Path, targets: Sequence[ErasureTarget], stands: IsCurrent) -> AffectedRows:
    """What of a complete snapshot the targets take. A row that the collected table still has stays, whoever's it is:
    it was said after the request."""
    found = AffectedRows()
    for name, requests in ((TRAIN_ROWS, found.trained), (HELDOUT_ROWS, found.measured)):
        asker_known = snapshot.names_askers(folder, name)
        for one in snapshot.read_rows(folder, name):
            requests |= {t.request_id for t in _taken(one.row, targets, stands, asker_known=asker_known)}
    return found


def _taken(
    row: Row, targets: Sequence[ErasureTarget], stands: IsCurrent, *, asker_known: bool
) -> list[ErasureTarget]:
    meant = [target for target in targets if target.means(row, asker_known=asker_known)]
    return meant if meant and not stands(row) else []


def rows_of(folder: Path) -> Iterable[GroupedRow]:
    """All rows of a complete snapshot, trained or measured."""
    yield from snapshot.read_rows(folder, TRAIN_ROWS)
    yield from snapshot.read_rows(folder, HELDOUT_ROWS)


def redact(folder: Path, targets: Sequence[ErasureTarget], stands: IsCurrent) -> None:
    """Both parts of the snapshot without what the targets take; of the other files those that hold no text. May be
    repeated. The mark goes on naming the dataset that was trained, by its digest."""
    gone = 0
    for name in (TRAIN_ROWS, HELDOUT_ROWS):
        asker_known = snapshot.names_askers(folder, name)
        rows = snapshot.read_rows(folder, name)
        left = [one for one in rows if not _taken(one.row, targets, stands, asker_known=asker_known)]
        if len(left) < len(rows):
            write_whole(folder / name, snapshot.to_parquet(left, names_askers=asker_known))
            gone += len(rows) - len(left)
    if gone:
        mark = json.loads((folder / SNAPSHOT).read_bytes())
        mark["erased"] = mark.get("erased", 0) + gone
        write_whole(folder / SNAPSHOT, json.dumps(mark, sort_keys=True).encode())
    keep_only(folder, WITHOUT_TEXT | {TRAIN_ROWS, HELDOUT_ROWS})


def remove_leftovers(folder: Path) -> None:
    """Of a run that is over: what a crash left behind, which may be older than any erasure."""
    if not snapshot.is_complete(folder):
        keep_only(folder, WITHOUT_TEXT)
        return
    for path in folder.glob(".*"):
        remove(path)


def stable_run_of(folder: Path) -> str | None:
    """The run whose version this run was gated against."""
    file = folder / CONFIG
    found = json.loads(file.read_bytes()).get("stable_run") if file.exists() else None
    return found if isinstance(found, str) else None
