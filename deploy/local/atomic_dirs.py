"""Folders that appear only once they are complete, inter-process locks, and private temporary folders."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.local.errors import StackError

MARKER = "ready.json"
"""File that is written last. It holds the facts (versions, digests, seeds) that the folder was made from."""


def is_complete(folder: Path, facts: dict[str, Any]) -> bool:
    """Return whether `folder` is complete and was made from these facts."""
    marker = folder / MARKER
    return marker.exists() and json.loads(marker.read_text()) == facts


@contextmanager
def atomic_dir(folder: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` when the block ends.

    If the block raises, `folder` does not change. Temporary folders of interrupted processes are removed by the next
    call. The caller must hold `exclusive_lock`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f"{folder.name}.part-*"):
        shutil.rmtree(leftover)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    yield part
    (part / MARKER).write_text(json.dumps(facts))
    part.chmod(0o755)
    for path in part.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)


@contextmanager
def exclusive_lock(lock: Path) -> Iterator[None]:
    """Hold a lock file exclusively, waiting for other processes. The kernel releases it when its holder dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def private_folder(name: str) -> Path:
    """Return a temporary folder that all processes of this user share and that is closed to other users.

    Raises:
        StackError: if the folder belongs to another user or is open to others.

    """
    folder = Path(tempfile.gettempdir()) / f"loopwright-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise StackError(f"{folder} belongs to another user or is open to others. Remove it.")
    return folder
