"""Reads dead letters, and makes the record that a replay sends back to the original topic. Pure.

A replayed record carries three more headers: `replayed_from` (position of the dead letter), `replay_id` (id of the
command), and `replay_count` (how many times it has been replayed, this time included). If it fails again, its new dead
letter carries them too, and so names the one before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from shared.dead_letters import DeadLetterOrigin, parse_origin
from shared.errors import Malformed
from shared.records import Headers, Output, Record

REPLAYED_FROM: Final = "replayed_from"
REPLAY_ID: Final = "replay_id"
REPLAY_COUNT: Final = "replay_count"
REPLAY_HEADERS: Final = frozenset({REPLAYED_FROM, REPLAY_ID, REPLAY_COUNT})
_ORIGIN_HEADERS: Final = frozenset(
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
    """Position of a dead letter in its topic, as text `<partition>-<offset>`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `<partition>-<offset>`. Raises `Malformed`."""
        if re.fullmatch(POSITION_PATTERN, text) is None:
            raise Malformed(
                f"{text[:64]!r} is not the position of a dead letter: expected partition-offset, for example 3-1042"
            )
        partition, offset = text.split("-")
        return cls(int(partition), int(offset))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter, with the key, value and headers of the original record."""

    position: DeadLetterPosition
    appended_ms: int
    """When the record became a dead letter, in ms since the epoch."""
    origin: DeadLetterOrigin
    key: bytes | None
    value: bytes | None
    headers: Headers
    """Without the headers of an earlier replay."""
    origin_partition: int | None = None
    origin_offset: int | None = None
    origin_timestamp_ms: int | None = None
    """Partition, offset and append time of the original record; None if the dead letter does not name them."""
    omitted_bytes: int | None = None
    """Size of the original record if it was too large to keep, else None."""
    replayed_from: str | None = None
    replay_id: str | None = None
    replay_count: int = 0


def parse_dead_letter(record: Record) -> DeadLetter:
    """Parse a record of the dead-letter topic. Never raises: headers that are missing or invalid become None."""
    own, origin = _split(record.headers)
    replay = {name: value.decode("utf-8", "replace") for name, value in own if name in REPLAY_HEADERS}
    return DeadLetter(
        position=DeadLetterPosition(record.partition, record.offset),
        appended_ms=record.timestamp,
        origin=parse_origin(record),
        key=record.key,
        value=record.value,
        headers=tuple(header for header in own if header[0] not in REPLAY_HEADERS),
        origin_partition=_number(origin.get("dl_partition")),
        origin_offset=_number(origin.get("dl_offset")),
        origin_timestamp_ms=_number(origin.get("dl_timestamp")),
        omitted_bytes=_number(origin.get("dl_omitted")),
        replayed_from=replay.get(REPLAYED_FROM),
        replay_id=replay.get(REPLAY_ID),
        replay_count=_number(replay.get(REPLAY_COUNT, "").encode()) or 0,
    )


def make_replay_record(dead_letter: DeadLetter, command_id: str) -> Output:
    """Return the original record, for its original topic and partition, with the headers of the replay."""
    replay_headers = (
        (REPLAYED_FROM, str(dead_letter.position).encode()),
        (REPLAY_ID, command_id.encode()),
        (REPLAY_COUNT, str(dead_letter.replay_count + 1).encode()),
    )
    return Output(
        dead_letter.origin.topic,
        dead_letter.key,
        dead_letter.value,
        (*dead_letter.headers, *replay_headers),
        partition=dead_letter.origin_partition,
    )


class ReplayMark(NamedTuple):
    """Mark of a record that a replay sent."""

    command_id: str
    position: str
    """Position of the dead dead_letter."""


def parse_replay_mark(headers: Headers) -> ReplayMark | None:
    """Return the mark of a replayed record, or None for any other record."""
    values = dict(headers)
    if REPLAY_ID not in values or REPLAYED_FROM not in values:
        return None
    return ReplayMark(
        values[REPLAY_ID].decode("utf-8", "replace"), values[REPLAYED_FROM].decode("utf-8", "replace")
    )


def _split(headers: Headers) -> tuple[Headers, dict[str, bytes]]:
    """Return the record's own headers, and the origin headers that were appended to them.

    The original record may have had headers with the same names: only the last block is the origin's.
    """
    origin: dict[str, bytes] = {}
    end = len(headers)
    while end > 0 and headers[end - 1][0] in _ORIGIN_HEADERS - origin.keys():
        end -= 1
        origin[headers[end][0]] = headers[end][1]
    return headers[:end], origin


def _number(text: bytes | None) -> int | None:
    return int(text) if text is not None and text.isdigit() and len(text) < 20 else None
