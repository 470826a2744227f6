"""Writes a dataset to take elsewhere, by command or, in a trainer that never trains, whenever a run would begin."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from services.trainer.dataset import batch_table, export_files, rewrite_cache, trl_records
from services.trainer.dataset.filters import reasons
from services.trainer.run import run_table
from services.trainer.settings import TrainerSettings
from shared.events import from_ms
from shared.ports import Clock

NEVER_TRAINS = (
    "this trainer writes datasets and never trains (LOOPWRIGHT_TRAINER_MODE=export): "
    "`loopwright dataset export` writes one now"
)
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What became of an export: whether there is one, and what to say of it. No text of users."""

    done: bool
    message: str


@dataclass(frozen=True, slots=True)
class Exporter:
    """Of one line, below its folder."""

    settings: TrainerSettings
    db: sqlite3.Connection
    clock: Clock

    def write(self) -> ExportResult:
        """All that is collected, as it is now. The same content is written once. What was read for it is not new any
        more, also where nothing of it may train."""
        through, now_ms = batch_table.through(self.db), self.clock.now_ms()
        found = trl_records.export(
            self.settings.line,
            batch_table.dataset(self.db, through),
            comments=self.settings.comment_mode,
            revised=rewrite_cache.known(self.settings.revisions, self.settings.reviser_model),
        )
        if not found.records:
            self._note("", through, now_ms)
            held = ", ".join(f"{n} ({reason})" for reason, n in reasons(found.held).items())
            return ExportResult(False, f"there is nothing to export; held back: {held or 'nothing either'}")
        folder = export_files.save(self.settings.exports, found, through, from_ms(now_ms))
        self._note(folder.name, through, now_ms)
        counts = ", ".join(f"{name} {n}" for name, n in export_files.counted(found).items())
        log.info("exported", digest=folder.name[:8], records=len(found.records))
        return ExportResult(True, f"exported to {folder.resolve()}: {counts}")

    def write_for_command(self) -> ExportResult:
        """As `write`; a disk that does not take it refuses the command, and does not end the service."""
        try:
            return self.write()
        except OSError as error:
            log.exception("export_failed")
            return ExportResult(
                False, f"could not be written below {self.settings.exports.resolve()}: {error.strerror}"
            )

    def _note(self, digest: str, through: Mapping[str, int], now_ms: int) -> None:
        with self.db:
            run_table.record_export(self.db, digest, through, now_ms)
