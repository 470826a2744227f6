"""The trainer's SQLite file, its tables, and the lock that reserves its folder for one process."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path
from typing import IO, Final

from shared.errors import Misconfigured, NotYet

FILE: Final = "trainer.sqlite3"
SCHEMA: Final = """
-- Batches, and the position up to which each partition is stored (dataset/batch_table.py).
CREATE TABLE IF NOT EXISTS positions (topic TEXT, partition INTEGER, next INTEGER, PRIMARY KEY (topic, partition));
CREATE TABLE IF NOT EXISTS batches (
    batch_id TEXT PRIMARY KEY, partition INTEGER, number INTEGER, rewrite INTEGER, cut_ms INTEGER);
CREATE TABLE IF NOT EXISTS rows (
    batch_id TEXT, response_id TEXT, revision INTEGER, op TEXT, example BLOB,
    PRIMARY KEY (batch_id, response_id, revision));
CREATE INDEX IF NOT EXISTS rows_by_response ON rows (response_id, revision);
CREATE TABLE IF NOT EXISTS releases (
    number INTEGER PRIMARY KEY AUTOINCREMENT, response_id TEXT NOT NULL, event_id TEXT NOT NULL, passes TEXT NOT NULL,
    UNIQUE (response_id, event_id, passes));

-- The feedback of the current examples, checked row by row, and its counts (dataset/feedback_counts.py).
CREATE TABLE IF NOT EXISTS uncounted (response_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted_examples (response_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feedback (
    response_id TEXT NOT NULL, position INTEGER NOT NULL, event_id TEXT NOT NULL, identity TEXT NOT NULL,
    user_id TEXT NOT NULL, kind TEXT NOT NULL, label INTEGER NOT NULL, content BLOB, occurred_ms INTEGER NOT NULL,
    reason TEXT, releasable INTEGER NOT NULL, trains INTEGER NOT NULL, partition INTEGER NOT NULL,
    number INTEGER NOT NULL, cut_ms INTEGER NOT NULL, release INTEGER NOT NULL, is_new INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS feedback_by_response ON feedback (response_id, position);
CREATE INDEX IF NOT EXISTS feedback_by_content ON feedback (content, occurred_ms) WHERE content IS NOT NULL;
CREATE UNIQUE INDEX IF NOT EXISTS feedback_usable ON feedback (content) WHERE content IS NOT NULL AND reason IS NULL;
CREATE INDEX IF NOT EXISTS feedback_by_batch ON feedback (is_new, partition, number);
CREATE INDEX IF NOT EXISTS feedback_by_release ON feedback (release) WHERE release > 0;
CREATE INDEX IF NOT EXISTS feedback_releasable ON feedback (response_id, event_id, reason) WHERE releasable = 1;
CREATE INDEX IF NOT EXISTS feedback_new_by_user ON feedback (user_id, label)
    WHERE is_new = 1 AND reason IS NULL AND trains = 1;
CREATE INDEX IF NOT EXISTS feedback_new_by_age ON feedback (label, cut_ms)
    WHERE is_new = 1 AND reason IS NULL AND trains = 1;
CREATE INDEX IF NOT EXISTS feedback_heldout_by_user ON feedback (user_id, kind) WHERE trains = 0 AND reason IS NULL;
CREATE TABLE IF NOT EXISTS feedback_totals (
    trains INTEGER, kind TEXT, label INTEGER, is_new INTEGER, rows INTEGER NOT NULL,
    PRIMARY KEY (trains, kind, label, is_new));
CREATE TABLE IF NOT EXISTS feedback_reasons (reason TEXT PRIMARY KEY, rows INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS new_users (
    user_id TEXT PRIMARY KEY, rows INTEGER NOT NULL, disliked INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS count_state (name TEXT PRIMARY KEY, value);

-- Runs, the rows they quarantine, and exports (run/run_table.py, run/run_quarantine.py).
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY, stage TEXT NOT NULL, through TEXT NOT NULL, config TEXT NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', version TEXT, created_ms INTEGER NOT NULL,
    examples INTEGER);
CREATE TABLE IF NOT EXISTS quarantine (
    run_id TEXT, response_id TEXT, event_id TEXT, reason TEXT, PRIMARY KEY (run_id, response_id, event_id));
CREATE TABLE IF NOT EXISTS exports (
    digest TEXT NOT NULL, through TEXT NOT NULL, created_ms INTEGER NOT NULL, examples INTEGER NOT NULL);

-- Operator commands, and what those with arguments name (commands/).
CREATE TABLE IF NOT EXISTS commands (
    command_id TEXT PRIMARY KEY, status TEXT, message TEXT, answered INTEGER NOT NULL DEFAULT 0,
    kind TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS release_orders (
    command_id TEXT, response_id TEXT, PRIMARY KEY (command_id, response_id));
CREATE TABLE IF NOT EXISTS command_versions (command_id TEXT PRIMARY KEY, version TEXT NOT NULL);

-- Gates of published versions: which commands began them, and which batches they read (commands/gate_again.py).
CREATE TABLE IF NOT EXISTS gates_again (
    command_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, number INTEGER NOT NULL, through TEXT NOT NULL);

-- Erasure requests, what the processor reported of them, and the runs that they affect (erasure/requests.py).
CREATE TABLE IF NOT EXISTS erasures (
    request_id TEXT PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL, response_id TEXT, event_id TEXT,
    partitions INTEGER NOT NULL, reported INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS erasure_parts (request_id TEXT, partition INTEGER, PRIMARY KEY (request_id, partition));
CREATE TABLE IF NOT EXISTS erasure_batches (
    request_id TEXT, batch_id TEXT, rewrite INTEGER NOT NULL, PRIMARY KEY (request_id, batch_id));
CREATE TABLE IF NOT EXISTS erasure_runs (
    request_id TEXT, run_id TEXT, trained INTEGER NOT NULL, PRIMARY KEY (request_id, run_id));
CREATE TABLE IF NOT EXISTS erased_versions (version TEXT PRIMARY KEY, run_id TEXT);
"""


def open_database(folder: Path) -> sqlite3.Connection:
    """Open `trainer.sqlite3` in `folder` for writing, and create it and its tables if missing.

    Each commit is durable (WAL, synchronous=FULL). Deleted content is overwritten with zeros, so after `scrub` none of
    it is left in the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(folder / FILE, timeout=30.0)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA secure_delete=ON")
    db.executescript(SCHEMA)
    return db


def open_read_only(folder: Path) -> sqlite3.Connection:
    """Open the file read-only, for another thread or process. Raises `NotYet` if it does not exist."""
    file = (folder / FILE).resolve()
    if not file.exists():
        raise NotYet("the trainer has not stored any batch yet: try again in a few seconds")
    return sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=30.0)


def scrub(db: sqlite3.Connection) -> bool:
    """Move all changes into the main file and truncate the write-ahead log, which may contain deleted content.

    Returns False if another process is reading: then nothing was truncated, and the caller must try again.
    """
    return bool(db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0)


def lock_folder(folder: Path) -> IO[str]:
    """Lock `folder` for this process until it ends. Raises `Misconfigured` if another trainer holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "trainer.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise Misconfigured(
            f"another trainer uses {folder}: stop it, or set LOOPWRIGHT_DATA_DIR to another folder for this one"
        ) from None
    file.write(str(os.getpid()))
    file.flush()
    return file
