"""Folders that are written whole or not at all, and those that are this user's alone."""

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
"""Written last into a folder: without it the folder is not complete; other facts mean another release."""


def is_complete(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether `folder` is complete and was made from these facts (versions, digests, seeds)."""
    marker = folder / MARKER
    return marker.exists() and json.loads(marker.read_text()) == facts


@contextmanager
def atomic_dir(folder: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder to fill; at the end of the block it is marked and takes `folder`'s place.

    If the block raises, `folder` stays as it was. What an interrupted block left behind is removed by the
    next one. Hold `only_one` around it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{folder.name}.part-*"):
        shutil.rmtree(left)
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
    """Wait until no other process holds this lock. The system releases it when its holder dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def private_folder(name: str) -> Path:
    """A folder among the system's temporary ones, the same for all of this user's processes, closed to other users.

    Raises:
        StackError: somebody else's stands in its place.

    """
    folder = Path(tempfile.gettempdir()) / f"loopwright-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise StackError(f"{folder} belongs to somebody else or is open to others; remove it.")
    return folder
