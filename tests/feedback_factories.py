"""Parts of the feedback service over a log in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from services.feedback.receipt_index import ReceiptIndex
from services.feedback.receipt_lookup import ReceiptLookup
from shared.adapters.in_memory import InMemoryLog, InMemoryLogRanges, InMemoryLogReader
from shared.ports import LogReader, Position
from shared.stream.state_store import MemoryStore, StateStore
from shared.telemetry import Readiness


def receipt_lookup(
    log: InMemoryLog,
    partitions: int,
    readiness: Readiness | None = None,
    *,
    store: StateStore | None = None,
    open_store: Callable[[], StateStore] | None = None,
    end_of: Callable[[Position], int] | None = None,
) -> ReceiptLookup:
    """Return a lookup over `log`. The caller starts its follower and stops it."""
    kept = store or MemoryStore()

    def open_reader(topics: Sequence[str], starts: Mapping[Position, int]) -> LogReader:
        return InMemoryLogReader(log, topics, starts)

    return ReceiptLookup(
        ReceiptIndex(open_store or (lambda: kept), max_records=100_000),
        open_reader,
        InMemoryLogRanges(log),
        end_of or log.end,
        partitions=partitions,
        readiness=readiness or Readiness("receipts"),
        on_failure=lambda: None,
    )
