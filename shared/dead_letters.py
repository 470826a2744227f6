"""Dead letters: records that cannot be processed. How one is made, and when errors are too many. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from shared.errors import LoopwrightError, Rejected
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


def is_unexpected(error: BaseException) -> bool:
    """Return whether an error is a fault of this software, and not the record's own.

    `Rejected` says that the record is at fault: its bytes cannot be parsed, or the broker refuses what they become. Any
    producer can cause such records, so they never stop anything, however many there are.
    """
    return not isinstance(error, Rejected)


class Skipped(Rejected):
    """An operator decided that a partition continues without this record."""

    code = "skipped"


@dataclass(frozen=True, slots=True)
class DeadLetterLimit:
    """Limit that stops the processing rather than emptying a topic into the dead letters.

    Unexpected errors exceed it if they are more than `max_share` of the last `window` records and also more than
    `max_count`. With the defaults, single records and short bursts pass; if every record fails, the 21st stops it.
    """

    window: int = 1_000
    max_share: float = 0.1
    max_count: int = 20

    def __str__(self) -> str:
        return f"more than {self.max_count}, and more than {self.max_share:.0%} of the last {self.window} records"


class DeadLetterRate:
    """Counts unexpected errors against a limit. Costs nothing for records without one.

    Errors on records with the same key count once within the window, because one cause with many records (a response
    with hundreds of events) must not stop everything else.
    """

    def __init__(self, limit: DeadLetterLimit) -> None:
        self._limit = limit
        self._processed = 0
        self._failures: dict[bytes | int, int] = {}
        """Key of the record, or its place for a record without one -> place of the newest, in the order of places."""

    def add_processed(self, records: int) -> None:
        """Count processed records, failed ones included."""
        self._processed += records

    def add_failure(self, ahead: int = 0, key: bytes | None = None) -> bool:
        """Count one error, `ahead` records after those counted as processed. Returns whether the limit is exceeded."""
        at, limit = self._processed + ahead, self._limit
        source = at if key is None else key
        self._failures.pop(source, None)
        self._failures[source] = at
        for oldest, place in list(self._failures.items()):
            if place > at - limit.window:
                break
            del self._failures[oldest]
        count = len(self._failures)
        return count > limit.max_count and count > limit.max_share * min(at + 1, limit.window)

    def save(self) -> tuple[int, dict[bytes | int, int]]:
        """Return the counts, for `roll_back`."""
        return self._processed, dict(self._failures)

    def roll_back(self, saved: tuple[int, dict[bytes | int, int]]) -> None:
        """Return to saved counts, after the transaction that they belong to was aborted."""
        self._processed, self._failures = saved[0], dict(saved[1])
