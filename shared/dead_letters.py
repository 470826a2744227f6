"""Dead letters: records that cannot be processed. How one is made, and when there are too many. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import chain

from shared.errors import LoopwrightError
from shared.records import Output, Record

MAX_MESSAGE_CHARACTERS = 1_000
ADDED_HEADER_BYTES = 4_096
"""Upper bound for the size of the headers that `make_dead_letter` adds."""


def error_class(error: BaseException) -> str:
    """Return the stable code of a `LoopwrightError`, or the class name of any other exception."""
    return error.code if isinstance(error, LoopwrightError) else type(error).__name__


def make_dead_letter(
    topic: str, record: Record, error: BaseException, service: str, max_bytes: int
) -> Output:
    """Return the dead letter of `record`: its own key, value and headers, and headers with its origin and the error.

    If that would exceed `max_bytes`, value and headers are omitted, and `dl_omitted` has their size. They are still at
    the named topic, partition and offset until retention removes them.
    """
    message = (str(error) or repr(error))[:MAX_MESSAGE_CHARACTERS]
    origin_headers = (
        ("dl_topic", record.topic.encode()),
        ("dl_partition", str(record.partition).encode()),
        ("dl_offset", str(record.offset).encode()),
        ("dl_timestamp", str(record.timestamp).encode()),
        ("dl_class", error_class(error).encode()[:200]),
        ("dl_message", message.encode("utf-8", "backslashreplace")),
        ("dl_service", service.encode()),
    )
    size = record_size(record.key, record.value, record.headers)
    if size + ADDED_HEADER_BYTES <= max_bytes:
        return Output(topic, record.key, record.value, (*record.headers, *origin_headers))
    key = record.key if len(record.key or b"") + ADDED_HEADER_BYTES <= max_bytes else None
    return Output(topic, key, None, (*origin_headers, ("dl_omitted", str(size).encode())))


@dataclass(frozen=True, slots=True)
class DeadLetterOrigin:
    """Topic of the original record, and the error that made it a dead letter."""

    topic: str
    error_class: str
    message: str
    service: str = ""
    """Service that could not process the record."""


def parse_origin(record: Record) -> DeadLetterOrigin:
    """Return the origin of a dead letter. A missing header becomes an empty text, so that any record can be counted."""
    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    return DeadLetterOrigin(
        headers.get("dl_topic", ""),
        headers.get("dl_class", ""),
        headers.get("dl_message", ""),
        headers.get("dl_service", ""),
    )


def record_size(key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...]) -> int:
    """Return the size of a record's contents in bytes."""
    size = len(key or b"") + len(value or b"")
    return size + sum(map(len, chain.from_iterable(headers))) if headers else size


@dataclass(frozen=True, slots=True)
class DeadLetterLimit:
    """Limit that halts a process rather than emptying a topic into the dead letters.

    Dead letters exceed it if, once `min_records` were processed, they are more than `max_share` of the last `window`
    records and also more than `max_count`. A process counts all its partitions together, from its start. With the
    defaults, single bad records and short bursts pass; if every record fails, the process halts after 100 records.
    """

    window: int = 1_000
    max_share: float = 0.1
    min_records: int = 100
    max_count: int = 20


class DeadLetterRate:
    """Counts dead letters against a limit. Costs nothing for records without an error."""

    def __init__(self, limit: DeadLetterLimit) -> None:
        self._limit = limit
        self._processed = 0
        self._dead_letters: deque[int] = deque()

    def add_processed(self, records: int) -> None:
        """Count processed records, dead letters included."""
        self._processed += records

    def add_dead_letter(self, ahead: int = 0) -> bool:
        """Count one dead letter, `ahead` records after those counted as processed. Returns whether it is too many."""
        at = self._processed + ahead
        dead_letters, limit = self._dead_letters, self._limit
        dead_letters.append(at)
        while dead_letters[0] <= at - limit.window:
            dead_letters.popleft()
        records = min(at + 1, limit.window)
        count = len(dead_letters)
        return records >= limit.min_records and count > limit.max_count and count > limit.max_share * records

    def save(self) -> tuple[int, tuple[int, ...]]:
        """Return the counts, for `roll_back`."""
        return self._processed, tuple(self._dead_letters)

    def roll_back(self, saved: tuple[int, tuple[int, ...]]) -> None:
        """Return to saved counts, after the transaction that they belong to was aborted."""
        self._processed, self._dead_letters = saved[0], deque(saved[1])
