"""The run table: which runs there were, how far each came, what became of it. One run is open at a time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from services.trainer.core.recipe import Recipe
from shared.events import from_ms
from shared.versions import VersionRef

Stage = Literal["begun", "snapshot", "trained", "gated", "published", "failed", "erased"]
CLOSED: Final = ("published", "failed", "erased")
"""`erased`: rows of its snapshot were erased under it. It is as if it had never been; another begins in its place."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """All that a run's outcome depends on besides the rows collected. Written before anything else of the run."""

    run_id: str
    line: str
    through: Mapping[str, int]
    recipe: Recipe
    base: str
    base_name: str
    base_digest: str
    stable: VersionRef
    stable_run: str | None
    created_ms: int
    released: int = 0
    """The number of the newest release that it follows (`quarantine_release.py`)."""

    @property
    def created_at(self) -> datetime:
        return from_ms(self.created_ms)

    def to_json(self) -> str:
        parts = {name: getattr(self, name) for name in self.__slots__}
        parts["recipe"] = self.recipe.model_dump()
        parts["stable"] = self.stable.model_dump()
        return json.dumps(parts, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        parts = json.loads(text)
        parts["recipe"] = Recipe.model_validate(parts["recipe"])
        parts["stable"] = VersionRef.model_validate(parts["stable"])
        return cls(**parts)


@dataclass(frozen=True, slots=True)
class Run:
    config: RunConfig
    stage: Stage
    failures: int
    reason: str
    version: str | None


def begin(db: sqlite3.Connection, config: RunConfig, reason: str) -> None:
    """Inside the caller's transaction. From here on a crash resumes this very run."""
    db.execute(
        "INSERT INTO runs (run_id, stage, through, config, reason, created_ms) VALUES (?, 'begun', ?, ?, ?, ?)",
        (config.run_id, json.dumps(dict(config.through)), config.to_json(), reason, config.created_ms),
    )


def open_run(db: sqlite3.Connection) -> Run | None:
    """The run that is not closed, if there is one."""
    return _first(_read(db, "WHERE stage NOT IN (?, ?, ?)", *CLOSED))


def by_id(db: sqlite3.Connection, run_id: str) -> Run | None:
    return _first(_read(db, "WHERE run_id = ?", run_id))


def by_version(db: sqlite3.Connection, version: str) -> Run | None:
    """The run that made it; None where this trainer's table has none, as of the base."""
    return _first(_read(db, "WHERE version = ?", version))


def all_runs(db: sqlite3.Connection) -> list[Run]:
    """The oldest first."""
    return _read(db)


def _read(db: sqlite3.Connection, where: str = "", *values: str) -> list[Run]:
    rows = db.execute(
        f"SELECT config, stage, failures, reason, version FROM runs {where} ORDER BY created_ms, run_id",  # noqa: S608 - `where` is from above
        values,
    )
    return [Run(RunConfig.from_json(row[0]), *row[1:]) for row in rows]


def _first(found: list[Run]) -> Run | None:
    return found[0] if found else None


def newest_through(db: sqlite3.Connection) -> dict[str, int]:
    """How far the newest run read, whatever became of it, unless it was `erased`: what lies behind is not new any
    more."""
    row = db.execute(
        "SELECT through FROM runs WHERE stage != 'erased' ORDER BY created_ms DESC, run_id DESC"
    ).fetchone()
    return dict(json.loads(row[0])) if row else {}


def newest_start_ms(db: sqlite3.Connection) -> int | None:
    """When the newest run began, in milliseconds, unless it was `erased`; None if there was none."""
    row = db.execute("SELECT MAX(created_ms) FROM runs WHERE stage != 'erased'").fetchone()
    return None if row[0] is None else int(row[0])


def record_export(db: sqlite3.Connection, digest: str, through: Mapping[str, int], now_ms: int) -> None:
    """Inside the caller's transaction."""
    db.execute("INSERT INTO exports VALUES (?, ?, ?)", (digest, json.dumps(dict(through)), now_ms))


def newest_export(db: sqlite3.Connection) -> tuple[dict[str, int], int | None]:
    """How far the newest export read, and when it was made; ({}, None) if there was none."""
    row = db.execute("SELECT through, created_ms FROM exports ORDER BY rowid DESC").fetchone()
    return (dict(json.loads(row[0])), int(row[1])) if row else ({}, None)


def newest_release(db: sqlite3.Connection) -> int:
    """The number of the newest release that the newest run follows, as `last_through`."""
    row = db.execute(
        "SELECT config FROM runs WHERE stage != 'erased' ORDER BY created_ms DESC, run_id DESC"
    ).fetchone()
    return RunConfig.from_json(row[0]).released if row else 0


def newest_is_erased(db: sqlite3.Connection) -> bool:
    """Whether the newest run was `erased`, so that another is to begin in its place."""
    row = db.execute("SELECT stage FROM runs ORDER BY created_ms DESC, run_id DESC").fetchone()
    return row is not None and row[0] == "erased"


def erased_runs(db: sqlite3.Connection) -> set[str]:
    """The runs that were `erased`."""
    return {run_id for (run_id,) in db.execute("SELECT run_id FROM runs WHERE stage = 'erased'")}


def set_stage(db: sqlite3.Connection, run_id: str, stage: Stage, version: str | None = None) -> None:
    with db:
        db.execute(
            "UPDATE runs SET stage = ?, version = COALESCE(?, version) WHERE run_id = ?",
            (stage, version, run_id),
        )


def store_quarantine(db: sqlite3.Connection, run_id: str, held: Iterable[tuple[str, str, str]]) -> None:
    """What a run's snapshot holds back: (response_id, event_id, reason) each. No text of users."""
    with db:
        db.executemany(
            "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?)", [(run_id, *one) for one in held]
        )


def newest_quarantine(db: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """(response_id, event_id, reason) of what the newest run that has a snapshot holds back."""
    rows = db.execute(
        "SELECT response_id, event_id, reason FROM quarantine WHERE run_id = "
        "(SELECT run_id FROM runs WHERE stage NOT IN ('begun', 'erased') "
        "ORDER BY created_ms DESC, run_id DESC) ORDER BY response_id, event_id"
    )
    return rows.fetchall()


def count_failure(db: sqlite3.Connection, run_id: str, reason: str) -> int:
    """Notes one more failure; returns how many there are."""
    with db:
        db.execute("UPDATE runs SET failures = failures + 1, reason = ? WHERE run_id = ?", (reason, run_id))
    return int(db.execute("SELECT failures FROM runs WHERE run_id = ?", (run_id,)).fetchone()[0])


def mark_failed(db: sqlite3.Connection, run_id: str, reason: str) -> None:
    """The run is over and no version comes of it."""
    with db:
        db.execute("UPDATE runs SET stage = 'failed', reason = ? WHERE run_id = ?", (reason, run_id))


def decided(db: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """(command_id, status, message) of commands that were decided and have no published result, in the order in which
    they came."""
    rows = db.execute(
        "SELECT command_id, status, COALESCE(message, '') FROM commands "
        "WHERE answered = 0 AND status IS NOT NULL ORDER BY rowid"
    )
    return rows.fetchall()


def undecided(db: sqlite3.Connection, kind: str) -> list[str]:
    """Commands of this kind that wait, in the order in which they came."""
    rows = db.execute(
        "SELECT command_id FROM commands WHERE answered = 0 AND status IS NULL AND kind = ? ORDER BY rowid",
        (kind,),
    )
    return [command_id for (command_id,) in rows]


def note_command(db: sqlite3.Connection, command_id: str, kind: str) -> None:
    db.execute("INSERT OR IGNORE INTO commands (command_id, kind) VALUES (?, ?)", (command_id, kind))


def decide_command(db: sqlite3.Connection, command_id: str, status: str, message: str) -> None:
    db.execute(
        "UPDATE commands SET status = ?, message = ? WHERE command_id = ?", (status, message, command_id)
    )


def mark_answered(db: sqlite3.Connection, command_id: str) -> None:
    with db:
        db.execute("UPDATE commands SET answered = 1 WHERE command_id = ?", (command_id,))


def note_reproduction(db: sqlite3.Connection, command_id: str, version: str) -> None:
    """Store the version that a reproduce command names, inside the caller's transaction."""
    db.execute("INSERT OR IGNORE INTO reproduce_orders VALUES (?, ?)", (command_id, version))


def version_to_reproduce(db: sqlite3.Connection, command_id: str) -> str:
    """Return the version that a reproduce command names."""
    row = db.execute("SELECT version FROM reproduce_orders WHERE command_id = ?", (command_id,)).fetchone()
    return str(row[0])
