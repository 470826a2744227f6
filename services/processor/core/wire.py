"""The processor's records as it writes them: byte for byte what the models of `shared.events` write.

Those validate, and are what everybody reads with; to write what was made here of what was validated, they cost more
than all the rest of a step. A property test holds the two together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from services.processor.core.state import Answer, Joined, encode
from shared import events
from shared.events import EARLIEST_MS, ChatResponse, OutcomeKind, Over, Under

SERVICE: Final = "processor"
"""Whose records they are."""


class SignalOut(Struct):
    """`shared.events.Signal`"""

    event_id: str
    kind: str
    user_id: str
    choice: int
    value: Raw
    tags: tuple[str, ...]
    occurred_at: str


class ExampleOut(Struct):
    """`shared.events.ExampleRevision`"""

    schema_version: int
    line: str
    response_id: str
    revision: int
    op: str
    version: str
    user_id: str | UnsetType
    messages: Raw
    choices: Raw
    signals: list[SignalOut]
    responded_at: str
    revised_at: str


class BatchOut(Struct):
    """`shared.events.Batch`"""

    schema_version: int
    line: str
    batch_id: str
    partition: int
    number: int
    rewrite: int
    reason: str
    examples: list[Raw]
    content_hash: str
    cut_at: str


class OutcomeOut(Struct):
    """`shared.events.Outcome`"""

    schema_version: int
    line: str
    response_id: str
    event_id: str
    outcome: OutcomeKind
    batch_id: str | UnsetType
    revision: int | UnsetType
    detail: str | UnsetType
    decided_at: str


class TallyOut(Struct):
    """`shared.events.Tally`; read again from the state."""

    schema_version: int
    line: str
    version: str
    user_id: str
    partition: int
    up: int = 0
    down: int = 0
    ratings: int = 0
    rating_sum: int = 0
    corrections: int = 0
    comments: int = 0
    preferences: int = 0
    updated_at: str = ""


read_tally = msgspec.json.Decoder(TallyOut).decode
NOTHING = Raw(b"[]")


@lru_cache(maxsize=4096)
def rfc3339(ms: int) -> str:
    """Milliseconds since the epoch, as written in records. Never raises. Neighbours in the log share theirs."""
    return events.rfc3339(events.from_ms(ms))


def answer_of(response: ChatResponse, at_ms: int) -> Answer:
    """A response as it is kept."""
    choices = [
        {"index": choice.index, "text": choice.text}
        | ({} if choice.finish_reason is None else {"finish_reason": choice.finish_reason})
        for choice in response.choices
    ]
    return Answer(
        line=response.line,
        version=response.version,
        status=response.status,
        at_ms=at_ms,
        messages=Raw(
            encode([{"role": message.role, "content": message.content} for message in response.messages])
        ),
        choices=Raw(encode(choices)),
        indices=tuple(sorted({choice.index for choice in response.choices})),
        user_id=response.user_id,
    )


def value_of(value: Over | Under | int | str) -> Raw:
    """What a feedback event says, as it stands in a batch."""
    if isinstance(value, Over):
        return Raw(encode({"over": value.over}))
    return Raw(encode({"under": value.under} if isinstance(value, Under) else value))


def example_of(response_id: str, joined: Joined, answer: Answer, now: str) -> bytes:
    """The newest revision. Without live signals it is a retraction and carries no content."""
    live = bool(joined.signals)
    signals = sorted(joined.signals.items(), key=lambda item: (item[1].at_ms, item[0]))
    return encode(
        ExampleOut(
            schema_version=1,
            line=joined.line,
            response_id=response_id,
            revision=joined.revision,
            op="upsert" if live else "retract",
            version=answer.version,
            user_id=answer.user_id if live and answer.user_id is not None else UNSET,
            messages=answer.messages if live else NOTHING,
            choices=answer.choices if live else NOTHING,
            signals=[
                SignalOut(
                    event_id,
                    one.kind,
                    one.user_id,
                    one.choice,
                    one.value,
                    one.tags,
                    # State that was stored before `join` clamped times may hold any.
                    rfc3339(max(one.at_ms, EARLIEST_MS)),
                )
                for event_id, one in signals
            ],
            responded_at=rfc3339(joined.since_ms if joined.responded_ms is None else joined.responded_ms),
            revised_at=now,
        )
    )


def batch_of(
    line: str,
    batch_id: str,
    partition: int,
    number: int,
    reason: str,
    examples: Sequence[bytes],
    now: str,
    rewrite: int = 0,
) -> bytes:
    """`examples` as `example_of` writes them."""
    return encode(
        BatchOut(
            schema_version=1,
            line=line,
            batch_id=batch_id,
            partition=partition,
            number=number,
            rewrite=rewrite,
            reason=reason,
            examples=[Raw(example) for example in examples],
            content_hash=hashlib.sha256(b"\n".join(examples)).hexdigest(),
            cut_at=now,
        )
    )
