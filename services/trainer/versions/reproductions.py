"""Which version each order to train one again names."""

from __future__ import annotations

import sqlite3

SCHEMA = """
CREATE TABLE IF NOT EXISTS reproduce_orders (command_id TEXT PRIMARY KEY, version TEXT NOT NULL);
"""


def note(db: sqlite3.Connection, command_id: str, version: str) -> None:
    """Inside the caller's transaction."""
    db.execute("INSERT OR IGNORE INTO reproduce_orders VALUES (?, ?)", (command_id, version))


def version_of(db: sqlite3.Connection, command_id: str) -> str:
    """The version that the command names."""
    found = db.execute("SELECT version FROM reproduce_orders WHERE command_id = ?", (command_id,))
    return str(found.fetchone()[0])
