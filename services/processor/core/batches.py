"""Rules of the open batch of one line in one partition: its bounds, and when it is cut. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.processor.core.state import OpenBatch, PendingExample
from shared.errors import Oversized
from shared.limits import EXAMPLE_FRAME_BYTES
from shared.topics import BATCH_BYTES

CutReason = Literal["count", "bytes", "age"]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of a batch. It is cut when the first of them is reached."""

    examples: int = 64
    size: int = BATCH_BYTES
    age_ms: int = 30_000


def example_size(response_bytes: int, joined_bytes: int) -> int:
    """Return an upper bound of an example's bytes in a batch, given the stored sizes of its parts."""
    return response_bytes + joined_bytes + EXAMPLE_FRAME_BYTES


def add(batch: OpenBatch, old: PendingExample | None, new: PendingExample, now_ms: int) -> None:
    """Add an example to the batch, in place of its older revision `old` if that is in it."""
    if not batch.examples:
        batch.opened_ms = now_ms
    batch.examples += old is None
    batch.size += new.size - (old.size if old else 0)


def remove(batch: OpenBatch, old: PendingExample) -> None:
    """Remove an example from the batch."""
    batch.examples -= 1
    batch.size -= old.size


def must_cut_before(
    batch: OpenBatch, old: PendingExample | None, new: PendingExample, limits: BatchLimits
) -> bool:
    """Return whether `new` no longer fits. Raises `Oversized` if it is larger than a whole batch may be."""
    if new.size > limits.size:
        raise Oversized(f"an example of {new.size} bytes; a batch holds at most {limits.size}")
    others = batch.examples - (old is not None)
    return others > 0 and batch.size - (old.size if old else 0) + new.size > limits.size


def cut_reason(batch: OpenBatch, now_ms: int, limits: BatchLimits) -> CutReason | None:
    """Return why the batch must be cut now, or None if it stays open."""
    if batch.examples == 0:
        return None
    if batch.examples >= limits.examples:
        return "count"
    return "age" if now_ms - batch.opened_ms >= limits.age_ms else None
