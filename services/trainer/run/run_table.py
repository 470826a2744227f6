"""Table of training runs: configuration, stage, failures. At most one run is open at a time.

It also stores which exports were written. The schema is in `database.py`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from services.trainer.core.recipe import Recipe
from shared.events import from_ms
from shared.run_stage import ENDED_STAGES, RunStage
from shared.versions import VersionRef

Replaces = Literal["erasure"]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Configuration of a run. With the collected rows it determines the result, so a resumed run uses the same one.

    Attributes:
        through: Highest batch number that the run reads, by partition.
        base: Folder of the base model.
        stable: Version that the gate compares the run's version with.
        stable_run: Run that made the stable version; None for the base.
        created_ms: Time at which the run started, in milliseconds since the epoch.
        chat_template_kwargs: Arguments of the chat template in training and at the gate.
        released: Number of the newest release from quarantine that the run includes (`quarantine_release.py`).
        again: An operator ordered the run with `train now --again`, so its data need not be new.
        gate_look: Which gate of the line since its last promotion the run's gate is, counted from 1
            (`versions/gate_looks.py`). It decides how much evidence a candidate needs.
        retry_of: The run whose data this one trains again by itself, with more replay (`core/way_forward.py`).
        replaces: `erasure` if rows that the stable version trained on were erased. The gate then asks whether the
            run's version is no worse, and not whether it is better.

    """

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
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    again: bool = False
    replaces: Replaces | None = None
    gate_look: int = 1
    retry_of: str | None = None

    @property
    def created_at(self) -> datetime:
        """Time at which the run started."""
        return from_ms(self.created_ms)

    def to_json(self) -> str:
        """Return the configuration as JSON with sorted keys."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["recipe"] = self.recipe.model_dump()
        fields["stable"] = self.stable.model_dump()
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunConfig:
        """Return the configuration that `to_json` wrote."""
        fields = json.loads(text)
        fields["recipe"] = Recipe.model_validate(fields["recipe"])
        fields["stable"] = VersionRef.model_validate(fields["stable"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Run:
    """A row of the table. `failures` counts errors of the process; `reason` says why the run started or failed."""

    config: RunConfig
    stage: RunStage
    failures: int
    reason: str
    version: str | None


def begin(db: sqlite3.Connection, config: RunConfig, reason: str) -> None:
    """Insert a new run, inside the caller's transaction. From then on a restart resumes this run."""
    db.execute(
        "INSERT INTO runs (run_id, stage, through, config, reason, created_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (
            config.run_id,
            RunStage.BEGUN,
            json.dumps(dict(config.through)),
            config.to_json(),
            reason,
            config.created_ms,
        ),
    )


def open_run(db: sqlite3.Connection) -> Run | None:
    """Return the run that has not ended, or None."""
    return _first(_read(db, "WHERE stage NOT IN (?, ?, ?)", *ENDED_STAGES))


def by_id(db: sqlite3.Connection, run_id: str) -> Run | None:
    """Return the run with this id, or None."""
    return _first(_read(db, "WHERE run_id = ?", run_id))


def by_version(db: sqlite3.Connection, version: str) -> Run | None:
    """Return the run that made `version`, or None if this table has none, as for the base."""
    return _first(_read(db, "WHERE version = ?", version))


def all_runs(db: sqlite3.Connection) -> list[Run]:
    """Return all runs, oldest first."""
    return _read(db)


def _read(db: sqlite3.Connection, where: str = "", *values: str) -> list[Run]:
    rows = db.execute(
        f"SELECT config, stage, failures, reason, version FROM runs {where} ORDER BY created_ms, run_id",  # noqa: S608 - `where` is from above
        values,
    )
    return [
        Run(RunConfig.from_json(config), RunStage(stage), failures, reason, version)
        for config, stage, failures, reason, version in rows
    ]


def _first(runs: list[Run]) -> Run | None:
    return runs[0] if runs else None


def newest_through(db: sqlite3.Connection) -> dict[str, int]:
    """Return up to which batch of each partition the newest run read; empty if there was none.

    Data up to there is no longer new, however the run ended. Erased runs do not count.
    """
    row = db.execute(
        "SELECT through FROM runs WHERE stage != 'erased' ORDER BY created_ms DESC, run_id DESC"
    ).fetchone()
    return dict(json.loads(row[0])) if row else {}


def newest_start_ms(db: sqlite3.Connection) -> int | None:
    """Return when the newest run started, or None if there was none. Erased runs do not count."""
    row = db.execute("SELECT MAX(created_ms) FROM runs WHERE stage != 'erased'").fetchone()
    return None if row[0] is None else int(row[0])


def newest_release(db: sqlite3.Connection) -> int:
    """Return the number of the newest quarantine release that the newest run includes. Erased runs do not count."""
    row = db.execute(
        "SELECT config FROM runs WHERE stage != 'erased' ORDER BY created_ms DESC, run_id DESC"
    ).fetchone()
    return RunConfig.from_json(row[0]).released if row else 0


def newest_if_erased(db: sqlite3.Connection) -> RunConfig | None:
    """Return the newest run if it is erased, so another run has to replace it."""
    row = db.execute(
        "SELECT stage, config FROM runs ORDER BY created_ms DESC, run_id DESC LIMIT 1"
    ).fetchone()
    return RunConfig.from_json(row[1]) if row is not None and row[0] == RunStage.ERASED else None


def newest_dataset_size(db: sqlite3.Connection) -> int:
    """Return how many rows trained in the newest run with a snapshot; 0 if there was none. Erased runs do not count."""
    row = db.execute(
        "SELECT examples FROM runs WHERE stage != 'erased' AND examples IS NOT NULL "
        "ORDER BY created_ms DESC, run_id DESC LIMIT 1"
    ).fetchone()
    return int(row[0]) if row else 0


def newest_replacement_ms(db: sqlite3.Connection) -> int | None:
    """Return when the newest run that replaces an erased version started, or None. Erased runs do not count."""
    row = db.execute(
        "SELECT MAX(created_ms) FROM runs WHERE stage != 'erased' AND json_extract(config, '$.replaces') = 'erasure'"
    ).fetchone()
    return None if row[0] is None else int(row[0])


def next_look(db: sqlite3.Connection) -> int:
    """Return about which gate since the last promotion the next run's gate is, counted from 1.

    It is the look of the newest run that was published, and one more. After a promotion this is too high until the next
    run starts, which reads the log (`versions/gate_looks.py`). Only what is said of a gate beforehand depends on it.
    """
    row = db.execute(
        "SELECT json_extract(config, '$.gate_look') FROM runs WHERE version IS NOT NULL "
        "ORDER BY created_ms DESC, run_id DESC LIMIT 1"
    ).fetchone()
    return int(row[0] or 0) + 1 if row else 1


def set_dataset_size(db: sqlite3.Connection, run_id: str, examples: int) -> None:
    """Store how many rows train in a run."""
    with db:
        db.execute("UPDATE runs SET examples = ? WHERE run_id = ?", (examples, run_id))


def erased_runs(db: sqlite3.Connection) -> set[str]:
    """Return the ids of the runs that an erasure ended."""
    return {run_id for (run_id,) in db.execute("SELECT run_id FROM runs WHERE stage = 'erased'")}


def set_stage(db: sqlite3.Connection, run_id: str, stage: RunStage, version: str | None = None) -> None:
    """Store the stage that a run has reached, and its version if one is given."""
    with db:
        db.execute(
            "UPDATE runs SET stage = ?, version = COALESCE(?, version) WHERE run_id = ?",
            (stage, version, run_id),
        )


def count_failure(db: sqlite3.Connection, run_id: str, reason: str) -> int:
    """Add one failure of the run's process. Return how many there are."""
    with db:
        db.execute("UPDATE runs SET failures = failures + 1, reason = ? WHERE run_id = ?", (reason, run_id))
    return int(db.execute("SELECT failures FROM runs WHERE run_id = ?", (run_id,)).fetchone()[0])


def newest(db: sqlite3.Connection) -> Run | None:
    """Return the run that was started last, or None if there was none."""
    runs = _read(db)
    return runs[-1] if runs else None


def newest_published(db: sqlite3.Connection) -> Run | None:
    """Return the run that made the line's newest version, or None."""
    newest = "(SELECT run_id FROM runs WHERE stage = ? ORDER BY created_ms DESC, run_id DESC LIMIT 1)"
    return _first(_read(db, f"WHERE run_id = {newest}", RunStage.PUBLISHED))


def retries_of(db: sqlite3.Connection, config: RunConfig) -> int:
    """Return how many runs have trained the data of a run again by themselves."""
    same = (run.config for run in _read(db, "WHERE through = ?", json.dumps(dict(config.through))))
    return sum(one.retry_of is not None and one.released == config.released for one in same)


def parse_through(text: str) -> dict[str, int]:
    """Return the highest batch numbers, by partition, that a column contains as JSON."""
    return dict(json.loads(text))


def take_up(db: sqlite3.Connection, config: RunConfig, reason: str) -> None:
    """Open a failed run again, with this configuration, after its training: the gate comes next."""
    with db:
        db.execute(
            "UPDATE runs SET stage = ?, config = ?, reason = ?, failures = 0 WHERE run_id = ?",
            (RunStage.TRAINED, config.to_json(), reason, config.run_id),
        )


def mark_failed(db: sqlite3.Connection, run_id: str, reason: str) -> None:
    """End the run without a version."""
    with db:
        db.execute(
            "UPDATE runs SET stage = ?, reason = ? WHERE run_id = ?", (RunStage.FAILED, reason, run_id)
        )


def newest_with_snapshot(db: sqlite3.Connection) -> str | None:
    """Return the id of the newest run with a snapshot, whose quarantine applies, or None. Erased runs do not count."""
    row = db.execute(
        "SELECT run_id FROM runs WHERE stage NOT IN ('begun', 'erased') "
        "ORDER BY created_ms DESC, run_id DESC LIMIT 1"
    ).fetchone()
    return None if row is None else str(row[0])


def record_export(
    db: sqlite3.Connection, digest: str, through: Mapping[str, int], now_ms: int, examples: int
) -> None:
    """Record an export, up to which batches it read and its number of records, inside the caller's transaction."""
    db.execute(
        "INSERT INTO exports VALUES (?, ?, ?, ?)", (digest, json.dumps(dict(through)), now_ms, examples)
    )


def newest_export_size(db: sqlite3.Connection) -> int:
    """Return the number of records of the newest export that has any; 0 if there is none."""
    row = db.execute("SELECT examples FROM exports WHERE examples > 0 ORDER BY rowid DESC LIMIT 1").fetchone()
    return int(row[0]) if row else 0


def newest_export(db: sqlite3.Connection) -> tuple[dict[str, int], int | None]:
    """Return up to which batches the newest export read and when it was written, or ({}, None) if there is none."""
    row = db.execute("SELECT through, created_ms FROM exports ORDER BY rowid DESC").fetchone()
    return (dict(json.loads(row[0])), int(row[1])) if row else ({}, None)
