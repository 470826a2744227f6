"""What users said, as the processor's batches bring it to the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from shared.events import Batch, Choice, ExampleRevision, Message, Signal, SignalKind
from shared.versions import batch_name

BEGAN = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
"""A time of its own: the same feedback makes the same snapshot, whenever it is made."""
BATCH = 64


@dataclass(frozen=True, slots=True)
class Said:
    """One user asked, got an answer, and said something of it. `times`: how often the same, which makes revisions.
    `stopped`: the app had the model stop there."""

    user: str
    question: str
    answered: str
    kind: SignalKind
    value: str
    times: int = 1
    stopped: bool = False


def examples(line: str, version: str, said: Sequence[Said]) -> list[ExampleRevision]:
    """One response each, a minute after the other. Of what one user says again the newest stands."""
    out = []
    for number, one in enumerate(said):
        at = BEGAN + timedelta(minutes=number)
        signal = Signal(
            event_id=f"event-{number:04}-{one.times}",
            kind=one.kind,
            user_id=one.user,
            value=one.value,
            occurred_at=at + timedelta(seconds=30 + one.times),
        )
        out.append(
            ExampleRevision(
                line=line,
                response_id=f"response-{number:04}",
                revision=one.times,
                op="upsert",
                version=version,
                user_id=one.user,
                messages=(Message(role="user", content=one.question),),
                choices=(
                    Choice(index=0, text=one.answered, finish_reason="length" if one.stopped else "stop"),
                ),
                signals=(signal,),
                responded_at=at,
                revised_at=signal.occurred_at,
            )
        )
    return out


def batches(line: str, found: Sequence[ExampleRevision]) -> list[Batch]:
    """Cut by count, all on one partition."""
    out = []
    for start in range(0, len(found), BATCH):
        part = tuple(found[start : start + BATCH])
        number = start // BATCH + 1
        out.append(
            Batch(
                line=line,
                batch_id=batch_name(line, 0, number),
                partition=0,
                number=number,
                reason="count",
                examples=part,
                content_hash=Batch.hash_of(part),
                cut_at=part[-1].revised_at,
            )
        )
    return out
