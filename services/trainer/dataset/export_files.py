"""Exports on disk: `exports/<digest>/`, complete or absent.

| name | content |
| --- | --- |
| `<format>-<split>.jsonl`, `<format>-<split>.parquet` | the records, as TRL takes them |
| `sources.parquet` | for each record its response, event and users, in the same order: how an erasure finds it |
| `export.json` | digest, batches read, records per file, quarantined rows per reason, records erased |

An export never changes in place. An erasure writes the remaining records to a new folder and then replaces the export.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from services.trainer.dataset.erasure_target import (
    ErasureTarget,
    IsCurrent,
    row_for_erasure,
    targets_of,
)
from services.trainer.dataset.filters import Row, count_reasons
from services.trainer.files import remove, sync_folder, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

    from services.trainer.dataset.trl_records import Export, Format, TrlRecord

EXPORT: Final = "export.json"
SOURCES: Final = "sources.parquet"
_NAMES: Final = ("file", "response_id", "event_id", "user_id", "asked_by", "revision")
FORMATS: Final[tuple[Format, ...]] = ("sft", "dpo", "kto")
Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Origin of one record: ids only, no text."""

    file: str
    response_id: str
    event_id: str
    user_id: str
    asked_by: str | None
    revision: int

    @classmethod
    def of(cls, record: TrlRecord) -> Source:
        """Return the source of a record."""
        row = record.row
        return cls(record.file, row.response_id, row.event_id, row.user_id, row.asked_by, row.revision)

    def row(self) -> Row:
        """Return the record's row without its text, as erasures match it."""
        return row_for_erasure(self.response_id, self.revision, self.event_id, self.user_id, self.asked_by)


def save(root: Path, export: Export, through: Mapping[str, int], made_at: datetime) -> Path:
    """Write an export below `root` under its digest, unless it exists, and return its folder."""
    folder = root / export.digest()
    if folder.exists():
        return folder
    summary = {
        "digest": folder.name,
        "through": dict(through),
        "made_at": made_at.isoformat(),
        "held": count_reasons(export.quarantined),
        "erased": 0,
    }
    records = [(Source.of(record), record.fields()) for record in export.records]
    _write(folder, records, summary)
    return folder


def load(folder: Path) -> list[tuple[Source, Fields]]:
    """Return the records of an export, each with its source."""
    sources = _read_sources(folder)
    lines = {
        name: iter((folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n"))
        for name in dict.fromkeys(source.file for source in sources)
    }
    return [(source, json.loads(next(lines[source.file]))) for source in sources]


def _read_sources(folder: Path) -> list[Source]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - large

    return [Source(**fields) for fields in pq.read_table(folder / SOURCES).to_pylist()]


def record_counts(export: Export) -> dict[str, int]:
    """Return the number of records per file, in order of the names."""
    return dict(sorted(Counter(record.file for record in export.records).items()))


def affected_requests(folder: Path, targets: Sequence[ErasureTarget], is_current: IsCurrent) -> set[str]:
    """Return the ids of the requests that delete records of this export."""
    return {
        target.request_id
        for source in _read_sources(folder)
        for target in targets_of(source.row(), targets, is_current)
    }


def redact(folder: Path, targets: Sequence[ErasureTarget], is_current: IsCurrent) -> None:
    """Delete the records that the targets delete; remove the export if none are left.

    The folder keeps its name. A crash may cost the whole export, but never leaves more of it than before.
    """
    records = load(folder)
    kept = [
        (source, fields) for source, fields in records if not targets_of(source.row(), targets, is_current)
    ]
    if len(kept) == len(records):
        return
    summary = json.loads((folder / EXPORT).read_bytes())
    summary["erased"] += len(records) - len(kept)
    if kept:
        _write(folder, kept, summary)
    else:
        remove(folder)


def remove_unfinished(root: Path) -> list[Path]:
    """Remove folders that a crash left unfinished, and return the complete exports."""
    for path in root.glob(".*"):
        remove(path)
    return sorted(path for path in root.glob("*") if path.is_dir())


def _write(folder: Path, records: Sequence[tuple[Source, Fields]], summary: Fields) -> None:
    """Write a complete export to a temporary folder, then replace `folder` with it."""
    staging = folder.with_name(f".{folder.name}.incoming")
    remove(staging)
    files: dict[str, list[Fields]] = defaultdict(list)
    for source, fields in records:
        files[source.file].append(fields)
    for name, rows in files.items():
        lines = (json.dumps(fields, ensure_ascii=False) + "\n" for fields in rows)
        write_whole(staging / f"{name}.jsonl", "".join(lines).encode())
        write_whole(staging / f"{name}.parquet", _parquet(rows, _columns(_format(name))))
    sources = [{name: getattr(source, name) for name in _NAMES} for source, _ in records]
    write_whole(staging / SOURCES, _parquet(sources, _source_columns()))
    counts = {"files": {name: len(rows) for name, rows in sorted(files.items())}}
    write_whole(staging / EXPORT, json.dumps({**summary, **counts}, indent=1, sort_keys=True).encode())
    remove(folder)
    staging.rename(folder)
    sync_folder(folder.parent)


def _format(file: str) -> Format:
    return next(name for name in FORMATS if file.startswith(f"{name}-"))


def _columns(record_format: Format) -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415 - large

    chat = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    columns: dict[Format, list[tuple[str, pa.DataType]]] = {
        "sft": [("prompt", chat), ("completion", chat)],
        "dpo": [("prompt", chat), ("chosen", chat), ("rejected", chat)],
        "kto": [("prompt", chat), ("completion", chat), ("label", pa.bool_())],
    }
    return pa.schema(columns[record_format])


def _source_columns() -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415 - large

    return pa.schema([(name, pa.int64() if name == "revision" else pa.string()) for name in _NAMES])


def _parquet(rows: Sequence[Fields], schema: pa.Schema) -> bytes:
    import pyarrow as pa  # noqa: PLC0415 - large
    import pyarrow.parquet as pq  # noqa: PLC0415

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, compression="zstd")
    return sink.getvalue()
