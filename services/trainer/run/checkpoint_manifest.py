"""Which checkpoints count: those whose mark, written last, names every file with its digest, and whose files are so.

No torch, so that the service may look too. A mark that an older release wrote names no digests and does not count: its
run begins its training again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from services.trainer.files import sync_folder, write_whole

MANIFEST = "complete"
"""The mark's name."""
log = structlog.get_logger(__name__)


def write_manifest(checkpoint: Path, step: int) -> None:
    """All its files are on the disk, then named with their digests; from here on it counts, also after a power cut."""
    sync(checkpoint)
    files = {
        str(path.relative_to(checkpoint)): [path.stat().st_size, _digest(path)] for path in _files(checkpoint)
    }
    write_whole(checkpoint / MANIFEST, json.dumps({"step": step, "files": files}, sort_keys=True).encode())


def sync(folder: Path) -> None:
    """Every file below is on the disk, and its name: for what was written by others' code, before it counts."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
    sync_folder(folder.parent)


def has_manifest(checkpoint: Path) -> bool:
    """Whether it was finished, whatever became of it since."""
    return (checkpoint / MANIFEST).exists()


def step_of(checkpoint: Path) -> int:
    """From its name; -1 where that is none of ours."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with it, in words; None where it is as it was marked."""
    found = _mark_of(checkpoint)
    if found is None:
        return "its mark is missing or cannot be read"
    for name, (size, digest) in found.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if _digest(path) != digest:
            return f"{name} was altered"
    return None


def intact_checkpoints(folder: Path) -> Iterator[Path]:
    """Those that can be gone on from, newest first. Each is read whole to be sure."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        wrong = find_damage(checkpoint)
        if wrong is None:
            yield checkpoint
        elif has_manifest(checkpoint):
            log.warning("checkpoint_damaged", checkpoint=checkpoint.name, damage=wrong)


def newest_step(folder: Path) -> int:
    """Of what was finished, unread; 0 where nothing was."""
    return max((step_of(one) for one in folder.glob("checkpoint-*") if has_manifest(one)), default=0)


def _mark_of(checkpoint: Path) -> dict[str, Any] | None:
    try:
        files = json.loads((checkpoint / MANIFEST).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if isinstance(files, dict) and files else None


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
