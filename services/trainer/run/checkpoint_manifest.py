"""Manifests that tell intact checkpoints from incomplete and damaged ones.

A manifest lists every file of a checkpoint with its size and SHA-256 digest. It is written last, so a checkpoint
without one is incomplete, and a checkpoint that differs from its manifest is damaged. A run resumes only from intact
checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from services.trainer.files import sync_tree, write_whole

MANIFEST: Final = "complete"
log = structlog.get_logger(__name__)


def write_manifest(checkpoint: Path, step: int) -> None:
    """Flush a checkpoint's files to disk, then write its manifest. The checkpoint then survives a power cut."""
    sync_tree(checkpoint)
    files = {
        str(path.relative_to(checkpoint)): [path.stat().st_size, _digest(path)] for path in _files(checkpoint)
    }
    write_whole(checkpoint / MANIFEST, json.dumps({"step": step, "files": files}, sort_keys=True).encode())


def has_manifest(checkpoint: Path) -> bool:
    """Return whether the checkpoint was completed. It may have been damaged since."""
    return (checkpoint / MANIFEST).exists()


def step_of(checkpoint: Path) -> int:
    """Return the step in the checkpoint's name `checkpoint-<step>`, or -1 if the name has another form."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def find_damage(checkpoint: Path) -> str | None:
    """Compare a checkpoint with its manifest. Return the first difference in words, or None if it is intact."""
    manifest = _read_manifest(checkpoint)
    if manifest is None:
        return "its manifest is missing or unreadable"
    for name, (size, digest) in manifest.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if _digest(path) != digest:
            return f"{name} was altered"
    return None


def intact_checkpoints(folder: Path) -> Iterator[Path]:
    """Yield the intact checkpoints in `folder`, newest first. Reads all files of each one to verify it."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        damage = find_damage(checkpoint)
        if damage is None:
            yield checkpoint
        elif has_manifest(checkpoint):
            log.warning("checkpoint_damaged", checkpoint=checkpoint.name, damage=damage)


def newest_step(folder: Path) -> int:
    """Return the step of the newest complete checkpoint without verifying it, or 0 if there is none."""
    return max((step_of(path) for path in folder.glob("checkpoint-*") if has_manifest(path)), default=0)


def _read_manifest(checkpoint: Path) -> dict[str, tuple[int, str]] | None:
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
