"""Records that cannot be processed: how one is written, and when there are too many. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import chain

from shared.errors import LoopwrightError
from shared.records import Output, Record

MAX_MESSAGE_CHARACTERS = 1_000
ADDED_HEADER_BYTES = 4_096
"""Room that the headers added here take at most."""


def error_class(error: BaseException) -> str:
    """The stable code of an error of ours, else the name of its class."""
    return error.code if isinstance(error, LoopwrightError) else type(error).__name__


def make_dead_letter(
    topic: str, record: Record, error: BaseException, service: str, max_bytes: int
) -> Output:
    """`record` as it goes to the dead letters: its own key, bytes and headers, and why.

    A record that would be larger than `max_bytes` so goes without its bytes and headers; `dl_omitted` then
    says how many there were. They stay at the topic, partition and offset named, while retention keeps them.
    """
    message = (str(error) or repr(error))[:MAX_MESSAGE_CHARACTERS]
    why = (
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
        return Output(topic, record.key, record.value, (*record.headers, *why))
    key = record.key if len(record.key or b"") + ADDED_HEADER_BYTES <= max_bytes else None
    return Output(topic, key, None, (*why, ("dl_omitted", str(size).encode())))


@dataclass(frozen=True, slots=True)
class DeadLetterOrigin:
    """Where a dead letter came from, and why it could not be processed. `code`: the class of the error."""

    topic: str
    error_class: str
    message: str
    service: str = ""


def parse_origin(record: Record) -> DeadLetterOrigin:
    """Empty words where a header is missing: a dead letter is counted whatever it says."""
    said = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    return DeadLetterOrigin(
        said.get("dl_topic", ""),
        said.get("dl_class", ""),
        said.get("dl_message", ""),
        said.get("dl_service", ""),
    )


def record_size(key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...]) -> int:
    """The size of a record's contents."""
    size = len(key or b"") + len(value or b"")
    return size + sum(map(len, chain.from_iterable(headers))) if headers else size


@dataclass(frozen=True, slots=True)
class DeadLetterLimit:
    """Too many: over `share` of the last `window` records and over `more_than`, once `at_least` were seen.

    Counted per process over all its partitions, from its start. The defaults let single bad records and short
    bursts pass, and stop at the latest after 100 records where every one fails.
    """

    window: int = 1_000
    max_share: float = 0.1
    min_records: int = 100
    max_count: int = 20


class DeadLetterRate:
    """Counts against a limit. Costs nothing for records that are well."""

    def __init__(self, limit: DeadLetterLimit) -> None:
        self._limit = limit
        self._seen = 0
        self._dead: deque[int] = deque()

    def add_processed(self, records: int) -> None:
        """So many more were seen, dead ones among them."""
        self._seen += records

    def add_dead_letter(self, ahead: int = 0) -> bool:
        """One more is dead: the record `ahead` places after those `processed`. True if that is too many."""
        at = self._seen + ahead
        dead = self._dead
        dead.append(at)
        while dead[0] <= at - self._limit.window:
            dead.popleft()
        seen = min(at + 1, self._limit.window)
        limit = self._limit
        return (
            seen >= limit.min_records and len(dead) > limit.max_count and len(dead) > limit.max_share * seen
        )

    def save(self) -> tuple[int, tuple[int, ...]]:
        """A state to return to."""
        return self._seen, tuple(self._dead)

    def roll_back(self, mark: tuple[int, tuple[int, ...]]) -> None:
        """As it was at `mark`: what an aborted transaction counted did not happen."""
        self._seen, self._dead = mark[0], deque(mark[1])
