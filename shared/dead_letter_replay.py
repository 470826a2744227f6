"""A dead letter as people see it, and its way back to its topic. Pure.

What goes back carries three headers more: `replayed_from` (the place of the dead letter), `replay_id` (the command) and
`replay_count` (how often it has gone back by now). If it fails again, its new dead letter has them too, and so names
the one before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from shared.dead_letters import DeadLetterOrigin, parse_origin
from shared.errors import Malformed
from shared.records import Headers, Output, Record

REPLAYED_FROM: Final = "replayed_from"
REPLAY_ID: Final = "replay_id"
REPLAY_COUNT: Final = "replay_count"
REPLAY_HEADERS: Final = frozenset({REPLAYED_FROM, REPLAY_ID, REPLAY_COUNT})
_CAUSE_HEADERS: Final = frozenset(
    {
        "dl_topic",
        "dl_partition",
        "dl_offset",
        "dl_timestamp",
        "dl_class",
        "dl_message",
        "dl_service",
        "dl_omitted",
    }
)
POSITION_PATTERN: Final = r"^[0-9]{1,6}-[0-9]{1,18}$"


@dataclass(frozen=True, slots=True, order=True)
class DeadLetterPosition:
    """Where a dead letter lies in its topic; as text `<partition>-<offset>`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `Malformed`."""
        if re.fullmatch(POSITION_PATTERN, text) is None:
            raise Malformed(
                f"{text[:64]!r} is not the position of a dead letter: these look like 3-1042 (partition-offset)"
            )
        partition, offset = text.split("-")
        return cls(int(partition), int(offset))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter. `key`, `value` and `headers` are those of the record that died; `headers` without the marks of
    an earlier replay.

    `partition`, `offset` and `timestamp` (ms) say where that record lies, as far as the dead letter says so. `omitted`:
    it was too large to keep, and had so many bytes.
    """

    position: DeadLetterPosition
    appended_ms: int
    origin: DeadLetterOrigin
    key: bytes | None
    value: bytes | None
    headers: Headers
    origin_partition: int | None = None
    origin_offset: int | None = None
    origin_timestamp_ms: int | None = None
    omitted_bytes: int | None = None
    replayed_from: str | None = None
    replay_id: str | None = None
    replay_count: int = 0


def parse_dead_letter(record: Record) -> DeadLetter:
    """Reads a record of the dead letters, whatever it says."""
    own, why = _split(record.headers)
    marks = {name: value.decode("utf-8", "replace") for name, value in own if name in REPLAY_HEADERS}
    return DeadLetter(
        position=DeadLetterPosition(record.partition, record.offset),
        appended_ms=record.timestamp,
        origin=parse_origin(record),
        key=record.key,
        value=record.value,
        headers=tuple(header for header in own if header[0] not in REPLAY_HEADERS),
        origin_partition=_number(why.get("dl_partition")),
        origin_offset=_number(why.get("dl_offset")),
        origin_timestamp_ms=_number(why.get("dl_timestamp")),
        omitted_bytes=_number(why.get("dl_omitted")),
        replayed_from=marks.get(REPLAYED_FROM),
        replay_id=marks.get(REPLAY_ID),
        replay_count=_number(marks.get(REPLAY_COUNT, "").encode()) or 0,
    )


def make_replay_record(letter: DeadLetter, command_id: str) -> Output:
    """The record that died, as it goes back: to its own topic and partition, with its own key, bytes and headers."""
    marks = (
        (REPLAYED_FROM, str(letter.position).encode()),
        (REPLAY_ID, command_id.encode()),
        (REPLAY_COUNT, str(letter.replay_count + 1).encode()),
    )
    return Output(
        letter.origin.topic,
        letter.key,
        letter.value,
        (*letter.headers, *marks),
        partition=letter.origin_partition,
    )


def parse_replay_mark(headers: Headers) -> tuple[str, str] | None:
    """(command id, place of the dead letter) of a record that a replay has sent; None for any other."""
    said = dict(headers)
    if REPLAY_ID not in said or REPLAYED_FROM not in said:
        return None
    return said[REPLAY_ID].decode("utf-8", "replace"), said[REPLAYED_FROM].decode("utf-8", "replace")


def _split(headers: Headers) -> tuple[Headers, dict[str, bytes]]:
    """The record's own headers, and those that were put behind them when it died, each once.

    A record may have brought headers of such names itself: what stands before the last block is its own.
    """
    why: dict[str, bytes] = {}
    end = len(headers)
    while end > 0 and headers[end - 1][0] in _CAUSE_HEADERS - why.keys():
        end -= 1
        why[headers[end][0]] = headers[end][1]
    return headers[:end], why


def _number(text: bytes | None) -> int | None:
    return int(text) if text is not None and text.isdigit() and len(text) < 20 else None
