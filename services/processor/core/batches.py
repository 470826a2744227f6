"""The open batch of one line in one partition: what waits in it, and when it is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from services.processor.core.state import Joined, OpenBatch, Pending
from shared.errors import Oversized
from shared.events import Batch, ChatResponse, ExampleRevision, from_ms
from shared.topics import BATCH_BYTES
from shared.versions import batch_name

CutReason = Literal["count", "bytes", "age"]
FRAME_BYTES = 512
"""What an example's own fields take beside its content, at most."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """When a batch is cut: whichever comes first."""

    examples: int = 64
    size: int = BATCH_BYTES
    age_ms: int = 30_000


def size_of(answer: bytes, joined: bytes) -> int:
    """An upper bound of an example's bytes in a batch, from its parts as stored."""
    return len(answer) + len(joined) + FRAME_BYTES


def with_pending(batch: OpenBatch, old: Pending | None, new: Pending, now_ms: int) -> OpenBatch:
    """The batch with `new` in it, in place of `old`."""
    return batch.model_copy(
        update={
            "opened_ms": batch.opened_ms if batch.examples else now_ms,
            "examples": batch.examples + (old is None),
            "size": batch.size + new.size - (old.size if old else 0),
        }
    )


def without_pending(batch: OpenBatch, old: Pending) -> OpenBatch:
    return batch.model_copy(update={"examples": batch.examples - 1, "size": batch.size - old.size})


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


def example_of(response_id: str, joined: Joined, answer: ChatResponse, now_ms: int) -> ExampleRevision:
    """The newest revision. Without live signals it is a retraction and carries no content."""
    live = bool(joined.signals)
    signals = sorted(joined.signals.values(), key=lambda signal: (signal.occurred_at, signal.event_id))
    return ExampleRevision(
        line=joined.line,
        response_id=response_id,
        revision=joined.revision,
        op="upsert" if live else "retract",
        version=answer.version,
        messages=answer.messages if live else (),
        choices=answer.choices if live else (),
        signals=tuple(signals),
        responded_at=from_ms(joined.responded_ms or joined.since_ms),
        revised_at=from_ms(now_ms),
    )


def cut(
    line: str,
    partition: int,
    number: int,
    reason: CutReason,
    examples: tuple[ExampleRevision, ...],
    now_ms: int,
) -> Batch:
    return Batch(
        line=line,
        batch_id=batch_name(line, partition, number),
        partition=partition,
        number=number,
        reason=reason,
        examples=examples,
        content_hash=Batch.hash_of(examples),
        cut_at=from_ms(now_ms),
    )
