"""The trainer's one SQLite file, and the lock that gives it to one process."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import IO

from services.trainer.commands import quarantine_release
from services.trainer.dataset import batch_table
from services.trainer.erasure import requests
from services.trainer.run import run_table
from services.trainer.versions import reproductions
from shared.errors import Misconfigured, NotYet

SWEPT = 1
"""`user_version` of a file in which nothing lies about that was deleted before deleting meant overwriting."""


def open_store(folder: Path) -> sqlite3.Connection:
    """Opens `trainer.sqlite3`, made where missing. Durable at each commit (WAL, synchronous=FULL); what is deleted is
    overwritten with zeros, so that after `scrub` no byte of it is left in the files."""
    folder.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(folder / "trainer.sqlite3", timeout=30.0)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA secure_delete=ON")
    db.executescript(
        batch_table.SCHEMA
        + run_table.SCHEMA
        + requests.SCHEMA
        + quarantine_release.SCHEMA
        + reproductions.SCHEMA
    )
    run_table.adopt(db)
    if db.execute("PRAGMA user_version").fetchone()[0] < SWEPT:
        db.execute("VACUUM")
        db.execute(f"PRAGMA user_version={SWEPT}")
    return db


def open_to_read(folder: Path) -> sqlite3.Connection:
    """Another view of the file, for a thread or a process that only looks. Raises `NotYet` where there is none."""
    table = (folder / "trainer.sqlite3").resolve()
    if not table.exists():
        raise NotYet("the trainer has not collected anything yet: try again in some seconds")
    return sqlite3.connect(f"{table.as_uri()}?mode=ro", uri=True, timeout=30.0)


def scrub(db: sqlite3.Connection) -> bool:
    """Carries all changes into the file and cuts the write-ahead log, which may hold what was deleted, to nothing.
    False if another process is reading: try again."""
    return bool(db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)


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
