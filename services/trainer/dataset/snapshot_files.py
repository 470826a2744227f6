"""Snapshot of a run's dataset on disk, identified by its content (I5).

| name | content |
| --- | --- |
| `train.parquet`, `heldout.parquet` | the rows that train, and those of held-out users |
| `snapshot.json` | reference, counts, and the quarantined events; written last: without it there is no snapshot |

Imports pyarrow only when rows are read or written: the trainer's service needs `snapshot.json` alone most of the time.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from services.trainer.dataset.filters import GroupedRow, QuarantinedRow, Row, count_reasons
from services.trainer.files import write_whole
from shared.events import canonical_json
from shared.versions import DatasetRef

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN_ROWS: Final = "train.parquet"
HELDOUT_ROWS: Final = "heldout.parquet"
SNAPSHOT: Final = "snapshot.json"
ASKED_BY: Final = "asked_by"
ROW_GROUP: Final = 4096
"""Rows written, and read, at a time: as Python objects they take several times their size in the file."""
UNENDED_COLUMNS: Final = ("unended", "original_unended")


@dataclass(frozen=True)
class Snapshot:
    """Rows that train, rows of held-out users, and what is quarantined. `through`: as in `DatasetRef`."""

    train: tuple[GroupedRow, ...]
    heldout: tuple[GroupedRow, ...]
    quarantined: tuple[QuarantinedRow, ...]
    through: Mapping[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the content hash of the rows that train, in order of identity.

        Excluded are columns that train nothing (who asked), and those that have their default.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for number, one in enumerate(self.train):
            row = fields_of(one)
            del row[ASKED_BY]
            if row["label"] is None:
                del row["label"]
            if row["objective"] == "sft":
                del row["objective"]
            for name in UNENDED_COLUMNS:
                if not row[name]:
                    del row[name]
            digest.update((b"\n" if number else b"") + canonical_json(row))
        return digest.hexdigest()

    def ref(self, tokens: int) -> DatasetRef:
        """Return the reference that versions publish. `tokens`: of all rows that train."""
        return DatasetRef(
            digest=self.digest(),
            examples=len(self.train),
            users=len({one.row.user_id for one in self.train}),
            through=dict(self.through),
            tokens=tokens,
        )


def fields_of(one: GroupedRow) -> dict[str, Any]:
    """Return a row as the columns of a snapshot."""
    row = one.row
    return {
        "response_id": row.response_id,
        "revision": row.revision,
        "event_id": row.event_id,
        "user_id": row.user_id,
        "messages": json.dumps([list(message) for message in row.messages], ensure_ascii=False),
        "original": row.original,
        "answer": row.answer,
        "occurred_ms": row.occurred_ms,
        "kind": row.kind,
        "group": one.group,
        ASKED_BY: row.asked_by,
        "objective": row.objective,
        "label": row.label,
        "unended": row.unended,
        "original_unended": row.original_unended,
    }


def row_from_fields(fields: Mapping[str, Any]) -> GroupedRow:
    """Return the row of `fields_of`."""
    columns = dict(fields)
    group = columns.pop("group")
    columns["messages"] = tuple((role, content) for role, content in json.loads(columns["messages"]))
    return GroupedRow(Row(**columns), group)


_TEXT: Final = ("response_id", "event_id", "user_id", "messages", "original", "answer", "kind", ASKED_BY)
_INTEGER: Final = ("revision", "occurred_ms", "group")


def _columns() -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415 - large

    return pa.schema(
        [(name, pa.string()) for name in _TEXT]
        + [(name, pa.int64()) for name in _INTEGER]
        + [("objective", pa.string()), ("label", pa.bool_())]
        + [(name, pa.bool_()) for name in UNENDED_COLUMNS]
    )


def to_parquet(rows: Sequence[GroupedRow]) -> bytes:
    """Return the rows as a Parquet file. Equal rows give equal bytes."""
    import pyarrow as pa  # noqa: PLC0415 - large
    import pyarrow.parquet as pq  # noqa: PLC0415

    sink = io.BytesIO()
    with pq.ParquetWriter(sink, _columns(), compression="zstd") as writer:
        for start in range(0, len(rows), ROW_GROUP):
            fields = [fields_of(one) for one in rows[start : start + ROW_GROUP]]
            writer.write_table(pa.Table.from_pylist(fields, schema=_columns()))
    return sink.getvalue()


def write(folder: Path, snapshot: Snapshot, tokens: int) -> DatasetRef:
    """Write both files of rows and then `snapshot.json`, which marks the snapshot as complete."""
    ref = snapshot.ref(tokens)
    write_whole(folder / TRAIN_ROWS, to_parquet(snapshot.train))
    write_whole(folder / HELDOUT_ROWS, to_parquet(snapshot.heldout))
    summary = {
        "dataset": ref.model_dump(mode="json"),
        "measuring": len(snapshot.heldout),
        "held": count_reasons(snapshot.quarantined),
        "quarantine": [[one.response_id, one.event_id, one.reason] for one in snapshot.quarantined],
    }
    write_whole(folder / SNAPSHOT, json.dumps(summary, sort_keys=True).encode())
    return ref


def read_ref(folder: Path) -> DatasetRef:
    """Return the reference of a complete snapshot."""
    return DatasetRef.model_validate(json.loads((folder / SNAPSHOT).read_bytes())["dataset"])


def read_quarantine(folder: Path) -> list[tuple[str, str, str]]:
    """Return the quarantined events of a complete snapshot as (response_id, event_id, reason)."""
    return [tuple(entry) for entry in json.loads((folder / SNAPSHOT).read_bytes())["quarantine"]]


def read_rows(folder: Path, name: str = TRAIN_ROWS) -> list[GroupedRow]:
    """Return the rows of a snapshot's file."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - large

    with pq.ParquetFile(folder / name) as file:
        batches = file.iter_batches(batch_size=ROW_GROUP)
        return [row_from_fields(fields) for batch in batches for fields in batch.to_pylist()]


def trained_rows(folder: Path) -> list[GroupedRow]:
    """Return the rows that a run trained on, or none if an erasure removed its snapshot."""
    return read_rows(folder) if is_complete(folder) else []


def is_complete(folder: Path) -> bool:
    """Return whether the folder contains a complete snapshot."""
    return (folder / SNAPSHOT).exists()
