"""Durable writes and removals of files and folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically and durably: readers see all of it or nothing, even after a power cut.

    Writes to a temporary name, syncs, renames, and syncs the folder. Creates missing parent folders.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename or a new file survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush all files and folders below `folder` to disk, and `folder`'s own entry. For files that libraries wrote."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
    sync_folder(folder.parent)


def keep_only(folder: Path, names: Iterable[str]) -> None:
    """Remove everything in `folder` except the entries called `names`."""
    kept = set(names)
    for path in folder.iterdir():
        if path.name not in kept:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder with its contents; do nothing if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
