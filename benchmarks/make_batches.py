"""Turns simulated feedback into the batches that the processor would write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.trainer.core.chat import Messages
from shared.events import Batch, Choice, ExampleRevision, Message, Signal, SignalKind
from shared.versions import batch_name

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
"""A fixed time, so the same feedback always makes the same snapshot."""
BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class UserFeedback:
    """One user's question, the answer, and the feedback on it.

    Attributes:
        user: Id of the user.
        question: What the user asked.
        answer: What the model answered.
        kind: Kind of the feedback.
        value: The correction, `up` or `down`, the number of stars, or the comment.
        times: How often the user sent the same feedback. Each time makes a revision.
        truncated: Whether the app stopped the model at the end of `answer`.
        earlier: Messages of the conversation before the question.
    """

    user: str
    question: str
    answer: str
    kind: SignalKind
    value: str | int
    times: int = 1
    truncated: bool = False
    earlier: Messages = ()

    @property
    def messages(self) -> Messages:
        """The conversation, which ends with the question."""
        return (*self.earlier, ("user", self.question))


def example_revisions(line: str, version: str, feedback: Sequence[UserFeedback]) -> list[ExampleRevision]:
    """Return the newest revision of one example for each feedback, one minute apart."""
    revisions = []
    for number, item in enumerate(feedback):
        responded_at = START + timedelta(minutes=number)
        signal = Signal(
            event_id=f"event-{number:04}-{item.times}",
            kind=item.kind,
            user_id=item.user,
            value=item.value,
            occurred_at=responded_at + timedelta(seconds=30 + item.times),
        )
        choice = Choice(index=0, text=item.answer, finish_reason="length" if item.truncated else "stop")
        revisions.append(
            ExampleRevision(
                line=line,
                response_id=f"response-{number:04}",
                revision=item.times,
                op="upsert",
                version=version,
                user_id=item.user,
                messages=tuple(
                    Message.model_validate({"role": role, "content": content})
                    for role, content in item.messages
                ),
                choices=(choice,),
                signals=(signal,),
                responded_at=responded_at,
                revised_at=signal.occurred_at,
            )
        )
    return revisions


def cut_batches(line: str, revisions: Sequence[ExampleRevision]) -> list[Batch]:
    """Return the revisions in batches of `BATCH_SIZE`, on one partition."""
    batches = []
    for start in range(0, len(revisions), BATCH_SIZE):
        examples = tuple(revisions[start : start + BATCH_SIZE])
        number = start // BATCH_SIZE + 1
        batches.append(
            Batch(
                line=line,
                batch_id=batch_name(line, 0, number),
                partition=0,
                number=number,
                reason="count",
                examples=examples,
                content_hash=Batch.hash_of(examples),
                cut_at=examples[-1].revised_at,
            )
        )
    return batches
