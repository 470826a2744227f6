"""Recognize a full disk, and free disk space that runs can do without.

The newest intact checkpoint of an open run and everything that belongs to a version are never deleted.
"""

from __future__ import annotations

import errno
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from services.trainer.files import remove
from services.trainer.run.checkpoint_manifest import has_manifest, intact_checkpoints
from services.trainer.run.folder import CHECKPOINTS

DISK_FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space left, quota exceeded, file size limit exceeded."""
CHECKPOINT_HEADROOM: Final = 1.5
"""Free space required before a checkpoint is written, as a multiple of the largest existing checkpoint."""
_DISK_FULL_MESSAGE: Final = re.compile(
    r"os error (28|122|27)\b|No space left on device|Disk quota exceeded"
    r"|database or disk is full|PytorchStreamWriter failed|unexpected pos \d+ vs"
)
"""Messages of safetensors, SQLite and torch, which do not keep the errno."""


def is_disk_full_error(error: BaseException) -> bool:
    """Return whether `error`, or an error that caused it, means that a disk is full."""
    return any(_is_disk_full(cause) for cause in _with_causes(error))


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_disk_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in DISK_FULL_ERRNOS
    if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) is not None:
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL
    return _DISK_FULL_MESSAGE.search(str(error)) is not None


def disk_full_message(path: Path) -> str:
    """Return the message for operators when the disk that holds `path` is full."""
    free = shutil.disk_usage(_existing_parent(path)).free >> 20
    return f"disk full at {path} ({free} MiB free). Free some space there; the run resumes automatically."


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def folder_bytes(folder: Path) -> int:
    """Return the total size of all files below `folder`, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def ensure_space_for_checkpoint(checkpoints: Path) -> bool:
    """Delete all checkpoints except the newest intact one if there is too little space to write another.

    Returns whether any checkpoint was deleted.
    """
    largest = max((folder_bytes(path) for path in _checkpoints(checkpoints) if has_manifest(path)), default=0)
    if not largest or shutil.disk_usage(checkpoints).free >= CHECKPOINT_HEADROOM * largest:
        return False
    return _remove_all(_old_checkpoints(checkpoints)) > 0


def free_space(run: Path) -> int:
    """Delete what a run can do without, after a write failed because the disk is full.

    Deletes partially written files, all checkpoints of this run except the newest intact one, and the checkpoints
    that failed runs keep for diagnosis. Returns the number of deleted files and folders.
    """
    partial = _remove_all(run.glob(".*"))
    old = _remove_all(_old_checkpoints(run / CHECKPOINTS))
    return partial + old + remove_checkpoints_of_other_runs(run.parent, keep=run.name)


def remove_checkpoints_of_other_runs(runs: Path, *, keep: str) -> int:
    """Delete the checkpoints of all runs except the run `keep`. Returns how many runs had some.

    Those runs have ended, so their checkpoints only serve diagnosis.
    """
    return _remove_all(path for path in runs.glob(f"*/{CHECKPOINTS}") if path.parent.name != keep)


def _old_checkpoints(folder: Path) -> Iterator[Path]:
    newest = next(intact_checkpoints(folder), None)
    return (path for path in _checkpoints(folder) if path != newest)


def _checkpoints(folder: Path) -> list[Path]:
    # Incomplete checkpoints first: if deleting is interrupted, only useless ones are gone.
    return sorted(folder.glob("checkpoint-*"), key=has_manifest)


def _remove_all(paths: Iterable[Path]) -> int:
    removable = list(paths)
    for path in removable:
        remove(path)
    return len(removable)
