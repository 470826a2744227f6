"""The open batch of one line in one partition: what waits in it, and when it is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.processor.core.state import OpenBatch, Pending
from shared.errors import Oversized
from shared.topics import BATCH_BYTES

CutReason = Literal["count", "bytes", "age"]
FRAME_BYTES = 512
"""What an example's own fields take beside its content, at most."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """When a batch is cut: whichever comes first."""

    examples: int = 64
    size: int = BATCH_BYTES
    age_ms: int = 30_000


def size_of(answer_bytes: int, joined_bytes: int) -> int:
    """An upper bound of an example's bytes in a batch, from those of its parts as stored."""
    return answer_bytes + joined_bytes + FRAME_BYTES


def put_in(batch: OpenBatch, old: Pending | None, new: Pending, now_ms: int) -> None:
    """`new` is in the batch from now on, in place of `old`."""
    if not batch.examples:
        batch.opened_ms = now_ms
    batch.examples += old is None
    batch.size += new.size - (old.size if old else 0)


def take_out(batch: OpenBatch, old: Pending) -> None:
    batch.examples -= 1
    batch.size -= old.size


def must_cut_before(batch: OpenBatch, old: Pending | None, new: Pending, limits: BatchLimits) -> bool:
    """Whether `new` no longer fits. Raises `Oversized` where it fits into no batch at all."""
    if new.size > limits.size:
        raise Oversized(f"an example of {new.size} bytes; a batch holds at most {limits.size}")
    others = batch.examples - (old is not None)
    return others > 0 and batch.size - (old.size if old else 0) + new.size > limits.size


def due(batch: OpenBatch, now_ms: int, limits: BatchLimits) -> CutReason | None:
    """Why the batch is to be cut now, or None."""
    if batch.examples == 0:
        return None
    if batch.examples >= limits.examples:
        return "count"
    return "age" if now_ms - batch.opened_ms >= limits.age_ms else None
