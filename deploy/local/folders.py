"""Folders that are written whole or not at all."""

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

READY = "ready.json"
"""Written last into a folder: without it the folder is not complete; other facts mean another release."""


def is_ready(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether `folder` is complete and was made from these facts (versions, digests, seeds)."""
    marker = folder / READY
    return marker.exists() and json.loads(marker.read_text()) == facts


@contextmanager
def written_whole(folder: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder to fill; at the end of the block it is marked and takes `folder`'s place.

    If the block raises, `folder` stays as it was. What an interrupted block left behind is removed by the
    next one. Hold `only_one` around it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{folder.name}.part-*"):
        shutil.rmtree(left)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    yield part
    (part / READY).write_text(json.dumps(facts))
    part.chmod(0o755)
    for path in part.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Wait until no other process holds this lock. The system releases it when its holder dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
