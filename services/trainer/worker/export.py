"""Write an export of everything that is collected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from services.trainer.dataset import export_files, rewrite_cache, trl_records
from services.trainer.dataset.batch_table import Example
from services.trainer.dataset.filters import Check, count_reasons
from services.trainer.dataset.votes import ChangeRule
from services.trainer.settings import TrainerSettings
from shared.events import from_ms

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ExportResult:
    """An export's digest, empty if there was nothing to export, and the message for the operator without user text."""

    digest: str
    records: int
    message: str


def export(
    settings: TrainerSettings,
    examples: Iterable[Example],
    through: Mapping[str, int],
    now_ms: int,
    report: Callable[[str], None],
    unfit: Check = lambda row: None,
) -> ExportResult:
    """Export the examples below `settings.exports`. Equal content is written once. `report` receives the progress.

    Rows for which `unfit` has a reason are not exported.

    Raises:
        OSError: The files cannot be written.

    """
    built = trl_records.build_export(
        settings.line,
        examples,
        comments=settings.comment_mode,
        rewrites=rewrite_cache.load_all(settings.revisions, settings.reviser_model),
        change_rule=ChangeRule.of(settings),
        unfit=unfit,
    )
    if not built.records:
        counts = ", ".join(
            f"{count} ({reason})" for reason, count in count_reasons(built.quarantined).items()
        )
        return ExportResult("", 0, f"there is nothing to export; quarantined: {counts or 'nothing'}")
    report(f"writing {len(built.records):,} records")
    folder = export_files.save(settings.exports, built, through, from_ms(now_ms))
    counts = ", ".join(f"{name} {count}" for name, count in export_files.record_counts(built).items())
    log.info("exported", digest=folder.name[:8], records=len(built.records))
    return ExportResult(folder.name, len(built.records), f"exported to {folder.resolve()}: {counts}")
