"""Rules of the open batch of one line in one partition: its bounds, and when it is cut. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from services.processor.core.state import OpenBatch, PendingExample
from shared.limits import EXAMPLE_FRAME_BYTES
from shared.topics import BATCH_BYTES

CutReason = Literal["count", "bytes", "age"]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of a batch. It is cut when the first of them is reached."""

    examples: int = 64
    size: int = BATCH_BYTES
    age_ms: int = 30_000

    @property
    def content_size(self) -> int:
        """The most bytes that a response and its signals may have together."""
        return self.size - EXAMPLE_FRAME_BYTES


def example_size(response_bytes: int, signals_bytes: int) -> int:
    """Return an upper bound of an example's bytes in a batch, given the sizes of its parts."""
    return response_bytes + signals_bytes + EXAMPLE_FRAME_BYTES


def add(
    batch: OpenBatch, old: PendingExample | None, new: PendingExample, now_ms: int, limits: BatchLimits
) -> None:
    """Add an example to the batch, in place of its older revision `old` if that is in it.

    A batch that seems to have been opened in the future, before the clock went back, counts as opened now.
    """
    if not batch.examples or batch.opened_ms > now_ms + limits.age_ms:
        batch.opened_ms = now_ms
    batch.examples += old is None
    batch.size += new.size - (old.size if old else 0)


def remove(batch: OpenBatch, old: PendingExample) -> None:
    """Remove an example from the batch."""
    batch.examples = max(0, batch.examples - 1)
    batch.size = max(0, batch.size - old.size)
    if not batch.examples:
        batch.opened_ms = batch.size = 0


def must_cut_before(
    batch: OpenBatch, old: PendingExample | None, new: PendingExample, limits: BatchLimits
) -> bool:
    """Return whether `new` no longer fits next to the other examples."""
    others = batch.examples - (old is not None)
    return others > 0 and batch.size - (old.size if old else 0) + new.size > limits.size


def cut_reason(batch: OpenBatch, now_ms: int, limits: BatchLimits) -> CutReason | None:
    """Return why the batch must be cut now, or None if it stays open."""
    if batch.examples == 0:
        return None
    if batch.examples >= limits.examples:
        return "count"
    return "age" if is_due(batch.opened_ms, now_ms, limits) else None


def is_due(opened_ms: int, now_ms: int, limits: BatchLimits) -> bool:
    """Return whether a batch is old enough to be cut, or seems to have been opened well in the future."""
    return not opened_ms - limits.age_ms <= now_ms < opened_ms + limits.age_ms


def split(sizes: Sequence[int], limits: BatchLimits) -> Iterator[slice]:
    """Split examples of these sizes, in bytes, into batches: one, unless an earlier release recorded wrong sizes."""
    start, size = 0, EXAMPLE_FRAME_BYTES
    for end, added in enumerate(sizes):
        if end > start and (end - start >= limits.examples or size + added > limits.size):
            yield slice(start, end)
            start, size = end, EXAMPLE_FRAME_BYTES
        size += added + 1
    if sizes:
        yield slice(start, len(sizes))
