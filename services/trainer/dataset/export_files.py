"""Exports on the disk: `exports/<digest>/`, there as a whole or not at all.

    sft-train.jsonl, sft-train.parquet, dpo-train..., kto-train..., ...-heldout...   the records, as TRL takes them
    sources.parquet     for each record its response, its event, and whose words it holds: so that erasure finds it
    export.json         what it is: digest, batches read, rows per file, what is held back and why

An export is never changed in place: what an erasure leaves of one is written beside it and takes its name.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from services.trainer.dataset.erasure_target import ErasureTarget, IsCurrent
from services.trainer.dataset.filters import Row, count_reasons
from services.trainer.dataset.trl_records import Export, Format, TrlRecord
from services.trainer.files import remove, sync_folder, write_whole

EXPORT, SOURCES = "export.json", "sources.parquet"
_CHAT: Final = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
COLUMNS: Final[dict[Format, pa.Schema]] = {
    "sft": pa.schema([("prompt", _CHAT), ("completion", _CHAT)]),
    "dpo": pa.schema([("prompt", _CHAT), ("chosen", _CHAT), ("rejected", _CHAT)]),
    "kto": pa.schema([("prompt", _CHAT), ("completion", _CHAT), ("label", pa.bool_())]),
}
_NAMES = ("file", "response_id", "event_id", "user_id", "asked_by")
SOURCE_COLUMNS: Final = pa.schema([(name, pa.string()) for name in _NAMES] + [("revision", pa.int64())])
Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """Where one record comes from. Names, no text."""

    file: str
    response_id: str
    event_id: str
    user_id: str
    asked_by: str | None
    revision: int

    @classmethod
    def of(cls, record: TrlRecord) -> Source:
        row = record.row
        return cls(record.file, row.response_id, row.event_id, row.user_id, row.asked_by, row.revision)

    def row(self) -> Row:
        """As erasures look at rows: who and what, without its text."""
        return Row(
            self.response_id,
            self.revision,
            self.event_id,
            self.user_id,
            (),
            "",
            "",
            0,
            asked_by=self.asked_by,
        )


def save(root: Path, export: Export, through: Mapping[str, int], made_at: datetime) -> Path:
    """Writes it below `root`, under its digest, unless it is there. Returns its folder."""
    folder = root / export.digest()
    if folder.exists():
        return folder
    mark = {
        "digest": folder.name,
        "through": dict(through),
        "made_at": made_at.isoformat(),
        "held": count_reasons(export.held),
        "erased": 0,
    }
    records = [(Source.of(one), one.fields()) for one in export.records]
    _write(folder, records, mark)
    return folder


def load(folder: Path) -> list[tuple[Source, Fields]]:
    """Its records, each with its source."""
    sources = [Source(**told) for told in pq.read_table(folder / SOURCES).to_pylist()]
    lines = {
        name: iter((folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n"))
        for name in dict.fromkeys(one.file for one in sources)
    }
    return [(one, json.loads(next(lines[one.file]))) for one in sources]


def affected_requests(folder: Path, targets: Sequence[ErasureTarget], stands: IsCurrent) -> set[str]:
    """The requests that take records out of this export."""
    rows = [Source(**told).row() for told in pq.read_table(folder / SOURCES).to_pylist()]
    return {target.request_id for row in rows for target in targets if target.means(row) and not stands(row)}


def redact(folder: Path, targets: Sequence[ErasureTarget], stands: IsCurrent) -> None:
    """Leaves an export without what the targets take, under the same name; removes one that has nothing else. A crash
    in the middle may cost the whole export, and never leaves more of it than before."""
    records = load(folder)
    left = [
        (source, fields)
        for source, fields in records
        if not any(target.means(source.row()) for target in targets) or stands(source.row())
    ]
    if len(left) == len(records):
        return
    mark = json.loads((folder / EXPORT).read_bytes())
    mark["erased"] += len(records) - len(left)
    if left:
        _write(folder, left, mark)
    else:
        remove(folder)


def remove_unfinished(root: Path) -> list[Path]:
    """Removes what a crash left half written. Returns the exports that are there."""
    for path in root.glob(".*"):
        remove(path)
    return sorted(path for path in root.glob("*") if path.is_dir())


def _write(folder: Path, records: Sequence[tuple[Source, Fields]], mark: Fields) -> None:
    """Beside `folder` first, then in its place."""
    staging = folder.with_name(f".{folder.name}.incoming")
    remove(staging)
    files: dict[str, list[Fields]] = defaultdict(list)
    for source, fields in records:
        files[source.file].append(fields)
    for name, rows in files.items():
        lines = (json.dumps(fields, ensure_ascii=False) + "\n" for fields in rows)
        write_whole(staging / f"{name}.jsonl", "".join(lines).encode())
        columns = COLUMNS[_format(name)]
        write_whole(staging / f"{name}.parquet", _parquet(rows, columns))
    sources = [{name: getattr(source, name) for name in SOURCE_COLUMNS.names} for source, _ in records]
    write_whole(staging / SOURCES, _parquet(sources, SOURCE_COLUMNS))
    told = mark | {"files": {name: len(rows) for name, rows in sorted(files.items())}}
    write_whole(staging / EXPORT, json.dumps(told, indent=1, sort_keys=True).encode())
    remove(folder)
    staging.rename(folder)
    sync_folder(folder.parent)


def _format(file: str) -> Format:
    return next(name for name in COLUMNS if file.startswith(f"{name}-"))


def _parquet(rows: Sequence[Fields], schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink, compression="zstd")
    return sink.getvalue()


def record_counts(export: Export) -> dict[str, int]:
    """Records per file, in the order of the names."""
    return dict(sorted(Counter(one.file for one in export.records).items()))
