"""Exports of the collected dataset: by command, or whenever a run would start if the trainer never trains."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from services.trainer.dataset import batch_table, export_files, rewrite_cache
from services.trainer.dataset.filters import count_reasons
from services.trainer.dataset.votes import ChangeRule
from services.trainer.run import run_table
from services.trainer.settings import TrainerSettings
from shared.events import from_ms
from shared.ports import Clock

NEVER_TRAINS: Final = (
    "this trainer exports datasets and never trains (LOOPWRIGHT_TRAINER_MODE=export): "
    "`loopwright dataset export` exports one now"
)
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Whether a dataset was exported, and the message for the operator, which contains no user text."""

    exported: bool
    message: str


@dataclass(frozen=True, slots=True)
class Exporter:
    """Writes exports of one line's dataset to `settings.exports`."""

    settings: TrainerSettings
    db: sqlite3.Connection
    clock: Clock

    def export(self) -> ExportResult:
        """Export everything collected so far. Equal content is written once.

        The data read for it no longer counts as new, even if none of it can be exported.
        """
        from services.trainer.dataset import trl_records  # noqa: PLC0415 - imports scikit-learn

        through, now_ms = batch_table.through(self.db), self.clock.now_ms()
        export = trl_records.build_export(
            self.settings.line,
            batch_table.current_examples(self.db, through),
            comments=self.settings.comment_mode,
            rewrites=rewrite_cache.load_all(self.settings.revisions, self.settings.reviser_model),
            change_rule=ChangeRule.of(self.settings),
        )
        if not export.records:
            self._record("", through, now_ms)
            counts = ", ".join(
                f"{count} ({reason})" for reason, count in count_reasons(export.quarantined).items()
            )
            return ExportResult(False, f"there is nothing to export; quarantined: {counts or 'nothing'}")
        folder = export_files.save(self.settings.exports, export, through, from_ms(now_ms))
        self._record(folder.name, through, now_ms)
        counts = ", ".join(f"{name} {count}" for name, count in export_files.record_counts(export).items())
        log.info("exported", digest=folder.name[:8], records=len(export.records))
        return ExportResult(True, f"exported to {folder.resolve()}: {counts}")

    def export_for_command(self) -> ExportResult:
        """Export as `export` does, but turn a write error into a refusal instead of raising `OSError`."""
        try:
            return self.export()
        except OSError as error:
            log.exception("export_failed")
            folder = self.settings.exports.resolve()
            return ExportResult(False, f"cannot write to {folder}: {error.strerror}")

    def _record(self, digest: str, through: Mapping[str, int], now_ms: int) -> None:
        with self.db:
            run_table.record_export(self.db, digest, through, now_ms)
