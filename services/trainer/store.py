"""The trainer's one SQLite file, and the lock that gives it to one process."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import IO

from services.trainer import collect, runs
from shared.errors import Misconfigured


def open_store(folder: Path) -> sqlite3.Connection:
    """Opens `trainer.sqlite3`, made where missing. Durable at each commit (WAL, synchronous=FULL)."""
    folder.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(folder / "trainer.sqlite3", timeout=30.0)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.executescript(collect.SCHEMA + runs.SCHEMA)
    return db


def lock(folder: Path) -> IO[str]:
    """Held until the process ends. Raises `Misconfigured` if another trainer works in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "trainer.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise Misconfigured(
            f"another trainer works in {folder}: stop it, or give this one its own LOOPWRIGHT_DATA_DIR"
        ) from None
    file.write(str(os.getpid()))
    file.flush()
    return file


def write_whole(path: Path, data: bytes) -> None:
    """Temp name, fsync, rename, fsync of the folder: readers see all of it or nothing, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
