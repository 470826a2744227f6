"""Fast encoding of the processor's output records, byte for byte as the pydantic models in `shared.events` write them.

Everyone reads these records with the models, which validate. To write records that are made from validated ones, the
models cost more than the rest of a step. So each model has a msgspec struct with the same fields, derived from it by
`wire_struct`: a field is defined once, in `shared.events`. The type checker cannot see the fields of a derived struct;
msgspec refuses an unknown or a missing field, and a property test compares the bytes of every record with its model's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct
from pydantic import TypeAdapter

from services.processor.core.state import JoinedResponse, StoredResponse, encode
from shared import events
from shared.events import EARLIEST_MS, ChatResponse, Choice, Message, Over, Under

SERVICE: Final = "processor"
"""The writer that the records name."""


def wire_struct(model: type[events.Part]) -> type[Struct]:
    """Return a msgspec struct with the fields of `model`, in order. A field whose default is None is left out if unset.

    Nothing is validated when it is made. Decoding it checks the fields that are numbers.
    """
    kinds: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for name, field in model.model_fields.items():
        kind = int if field.annotation is int else Any
        default = UNSET if field.default is None else field.default
        kinds.append((name, kind) if field.is_required() else (name, kind, default))
    return msgspec.defstruct(f"{model.__name__}Out", kinds, kw_only=True)


SignalOut = wire_struct(events.Signal)
ExampleOut = wire_struct(events.ExampleRevision)
BatchOut = wire_struct(events.Batch)
OutcomeOut = wire_struct(events.Outcome)
TallyOut = wire_struct(events.Tally)
SampleOut = wire_struct(events.ResponseSample)

_read_tally = msgspec.json.Decoder(TallyOut).decode
_MESSAGES: TypeAdapter[tuple[Message, ...]] = TypeAdapter(tuple[Message, ...])
_CHOICES: TypeAdapter[tuple[Choice, ...]] = TypeAdapter(tuple[Choice, ...])
_EMPTY = Raw(b"[]")


@lru_cache(maxsize=4096)
def rfc3339(ms: int) -> str:
    """Return a time in ms since the epoch as records hold it. Cached: neighbours in the log often share a time."""
    return events.rfc3339(events.from_ms(ms))


def to_stored(response: ChatResponse, at_ms: int) -> StoredResponse:
    """Return a response as the state keeps it, given its append time."""
    return StoredResponse(
        line=response.line,
        version=response.version,
        status=response.status,
        at_ms=at_ms,
        messages=Raw(_MESSAGES.dump_json(response.messages, exclude_none=True)),
        choices=Raw(_CHOICES.dump_json(response.choices, exclude_none=True)),
        indices=tuple(sorted({choice.index for choice in response.choices})),
        user_id=response.user_id,
    )


def read_tally(value: bytes) -> Struct | None:
    """Return a stored `TallyOut`, or None if it cannot be read."""
    try:
        tally: Struct = _read_tally(value)
    except (msgspec.MsgspecError, ValueError):
        return None
    return tally if isinstance(tally.updated_at, str) else None  # type: ignore[attr-defined]


def date_of(value: bytes) -> str | None:
    """Return the date of a stored tally's newest change as ISO 8601, or None if it cannot be read."""
    tally = read_tally(value)
    return None if tally is None else tally.updated_at[:10]  # type: ignore[attr-defined]


def value_json(value: Over | Under | int | str) -> Raw:
    """Return the content of a feedback event in the bytes that a batch holds."""
    return Raw(encode(value) if isinstance(value, int | str) else value.model_dump_json().encode())


def example_json(response_id: str, joined: JoinedResponse, response: StoredResponse, now: str) -> bytes:
    """Return the newest `ExampleRevision`. Without current signals it is a retraction and carries no content."""
    live = bool(joined.signals)
    signals = sorted(joined.signals.items(), key=lambda item: (item[1].at_ms, item[0]))
    return encode(
        ExampleOut(
            line=joined.line,
            response_id=response_id,
            revision=joined.revision,
            op="upsert" if live else "retract",
            version=response.version,
            user_id=response.user_id if live and response.user_id is not None else UNSET,
            messages=response.messages if live else _EMPTY,
            choices=response.choices if live else _EMPTY,
            signals=[
                SignalOut(
                    event_id=event_id,
                    kind=signal.kind,
                    user_id=signal.user_id,
                    choice=signal.choice,
                    value=signal.value,
                    tags=signal.tags,
                    # State that was stored before `join` clamped times may hold any.
                    occurred_at=rfc3339(max(signal.at_ms, EARLIEST_MS)),
                )
                for event_id, signal in signals
            ],
            responded_at=rfc3339(joined.since_ms if joined.responded_ms is None else joined.responded_ms),
            revised_at=now,
        )
    )


class _ToolFunction(Struct):
    name: str
    arguments: str


class _ToolCall(Struct):
    id: str
    type: Literal["function"]
    function: _ToolFunction


class _Message(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str | None = None
    tool_calls: tuple[_ToolCall, ...] | None = None
    tool_call_id: str | None = None


class _Choice(Struct):
    index: Annotated[int, Meta(ge=0, lt=events.MAX_CHOICES)]
    text: str
    finish_reason: str | None = None
    tool_calls: tuple[_ToolCall, ...] | None = None


class _Signal(Struct):
    event_id: str
    kind: events.SignalKind
    user_id: str
    value: int | str | dict[str, Any]
    tags: tuple[str, ...] = ()


class _Example(Struct):
    line: str
    revision: Annotated[int, Meta(ge=1)]
    version: str
    user_id: str | None = None
    messages: tuple[_Message, ...] = ()
    choices: tuple[_Choice, ...] = ()
    signals: tuple[_Signal, ...] = ()


_decode_example = msgspec.json.Decoder(_Example).decode


def is_example(value: bytes) -> bool:
    """Return whether the readers of a batch can read this example.

    What is rendered from records always can be read. An earlier release may have stored something else, and one such
    example would make its whole batch unreadable. This checks types, which is some times faster than the model.
    """
    try:
        _decode_example(value)
    except (msgspec.MsgspecError, ValueError):
        return False
    return True


def batch_json(
    line: str,
    batch_id: str,
    partition: int,
    number: int,
    reason: str,
    examples: Sequence[bytes],
    now: str,
) -> bytes:
    """Return a `Batch` of examples that `example_json` made."""
    return encode(
        BatchOut(
            line=line,
            batch_id=batch_id,
            partition=partition,
            number=number,
            reason=reason,
            examples=[Raw(example) for example in examples],
            content_hash=hashlib.sha256(b"\n".join(examples)).hexdigest(),
            cut_at=now,
        )
    )
