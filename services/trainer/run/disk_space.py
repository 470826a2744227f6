"""Room on the disk: whether a failure means that there is none, what of a run's files may go, and how much is left.

What is freed is never the newest good checkpoint of a run that is open, nor anything that a version is made of.
"""

from __future__ import annotations

import errno
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from services.trainer.run.checkpoint_manifest import intact_checkpoints, has_manifest
from services.trainer.run.folder import CHECKPOINTS

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space, no quota, a file-size limit: to who writes they are one."""
CHECKPOINT_HEADROOM = 1.5
"""A checkpoint is begun with room for so many of the newest, or the others go first."""
_TOLD = re.compile(
    r"os error (28|122|27)\b|No space left on device|Disk quota exceeded"
    r"|database or disk is full|PytorchStreamWriter failed|unexpected pos \d+ vs"
)
"""How safetensors, SQLite and torch word it; the errno is lost there."""


def is_disk_full_error(error: BaseException) -> bool:
    """Whether this, or what it came from, says that a disk takes no more."""
    return any(_says_full(one) for one in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in DISK_FULL_ERRNOS
    if isinstance(error, sqlite3.Error):
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL if _has_code(error) else _worded(error)
    return _worded(error)


def _has_code(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) is not None


def _worded(error: BaseException) -> bool:
    return _TOLD.search(str(error)) is not None


def disk_full_message(place: Path) -> str:
    """For a person."""
    free = shutil.disk_usage(nearest(place)).free >> 20
    return (
        f"the disk that holds {place} takes no more ({free} MiB free): make room there; it goes on by itself"
    )


def nearest(place: Path) -> Path:
    """The folder itself, or the first above it that exists."""
    return next(one for one in (place, *place.absolute().parents) if one.exists())


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def ensure_space_for_checkpoint(checkpoints: Path) -> bool:
    """Where there is no room for another checkpoint beside those that are kept, all but the newest good one go. Returns
    whether any did."""
    finished = [one for one in _checkpoints(checkpoints) if has_manifest(one)]
    largest = max(map(folder_bytes, finished), default=0)
    if not largest or shutil.disk_usage(checkpoints).free >= CHECKPOINT_HEADROOM * largest:
        return False
    newest = next(intact_checkpoints(checkpoints), None)
    return bool(_remove(one for one in _checkpoints(checkpoints) if one != newest))


def free_space(run: Path) -> int:
    """After a write has failed: what a run can go on without. Returns how many things went.

    Half-written files, all of its checkpoints but the newest good one, and the checkpoints that failed runs keep as
    evidence."""
    gone = _remove(path for path in run.glob(".*"))
    mine = run / CHECKPOINTS
    newest = next(intact_checkpoints(mine), None)
    gone += _remove(one for one in _checkpoints(mine) if one != newest)
    return gone + remove_checkpoints_of_other_runs(run.parent, but_of=run.name)


def remove_checkpoints_of_other_runs(runs: Path, *, but_of: str) -> int:
    """Of all runs but this one: they are over, and kept checkpoints as evidence at most. Returns how many runs did."""
    return _remove(one for one in runs.glob(f"*/{CHECKPOINTS}") if one.parent.name != but_of)


def _checkpoints(folder: Path) -> Iterator[Path]:
    # Those that were never finished first: they are good for nothing.
    yield from sorted(folder.glob("checkpoint-*"), key=has_manifest)


def _remove(paths: Iterator[Path]) -> int:
    found = list(paths)
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return len(found)
