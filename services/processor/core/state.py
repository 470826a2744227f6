"""State of one partition: its keys, its values, and typed access to both.

Keys are ordered by their bytes:

| key | value |
| --- | --- |
| `a/<response_id>` | `StoredResponse`: the response, written once |
| `j/<response_id>` | `JoinedResponse`: the response's feedback; exists from the first feedback event on |
| `x/<time>/<response_id>` | empty: the time index by which windows close |
| `b/<line>` | `OpenBatch`: the batch being filled; kept for ever, because no batch number may be used twice |
| `d/<time>/<line>` | empty: the index of the open batches that hold examples, by the time when they were opened |
| `p/<line>/<response_id>` | `PendingExample`: an example in that batch |
| `t/<version>/<user_id>` | the newest tally, in the bytes that were sent |
| `y/<date>/<version>/<user_id>` | empty: the index of tallies by the date of their newest change |
| `m/clock` | `StreamClock`: stream time, and when something is due |
| `m/erasing`, `e/`, `f/`, `g/`, `q/`, `r/`, `w/` | erasures: see `erasure/tasks.py` |

Different ids never share a key: `/` and `%` in versions and users are percent-encoded, and lines contain neither.

Values are JSON written by msgspec, because every record reads and writes several of them. Only this service writes
them, but an earlier release may have written what can no longer be processed, so no value is trusted: what cannot be
read is set aside (`PartitionTurn.set_aside`), and a partition never stops because of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from typing import Any, Final, Self

import msgspec
from msgspec import Raw, Struct, field

from shared.composed_ids import join_ids, split_ids
from shared.events import MAX_SIGNALS
from shared.feedback_kinds import KIND_BY_NAME
from shared.stream.step import State
from shared.topics import DAY_MS, WINDOW_DAYS

WINDOW_MS: Final = WINDOW_DAYS * DAY_MS
LATE_MS: Final = WINDOW_MS
"""How long after its window a response is remembered, so that its feedback is reported as `late`, not `unmatched`."""

UNKNOWN_LINE: Final = "unknown"
"""The line in outcomes of responses that can no longer be read."""
LINE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

JUMP_MS: Final = 3_600_000
"""By how much append times may jump ahead without moving stream time at once."""

encode = msgspec.json.Encoder().encode


# --- values -----------------------------------------------------------------------------------------------------


class StoredValue(Struct, omit_defaults=True):
    """Base of the values in the store."""

    def to_json(self) -> bytes:
        """Return the value as it is stored."""
        return encode(self)

    @classmethod
    def from_json(cls, value: bytes) -> Self:
        """Return the value stored as `value`. Raises `msgspec.MsgspecError` or `ValueError` if it cannot be read."""
        return _DECODERS[cls].decode(value)  # type: ignore[no-any-return]

    @classmethod
    def read(cls, value: bytes) -> Self | None:
        """Return the value stored as `value`, or None if it cannot be read."""
        try:
            return _DECODERS[cls].decode(value)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None


class StoredResponse(StoredValue):
    """A response. `messages` and `choices` are kept in the bytes that a batch will hold."""

    line: str
    version: str
    status: str
    at_ms: int
    messages: Raw
    choices: Raw
    indices: tuple[int, ...] = ()
    """The indices of its choices."""
    user_id: str | None = None

    def same_content(self, other: StoredResponse) -> bool:
        """Return whether the same question got the same answer, ignoring how the record was delivered."""
        return (self.line, self.version, self.status, bytes(self.messages), bytes(self.choices)) == (
            other.line, other.version, other.status, bytes(other.messages), bytes(other.choices),
        )  # fmt: skip

    @property
    def valid_choices(self) -> tuple[int, ...] | None:
        """The choices that feedback may name. None allows any: a failed request has no choices to compare with."""
        return self.indices if self.status == "completed" else None


class SeenEvent(Struct, omit_defaults=True):
    """Memory of a feedback event, to detect duplicates and other users' retractions.

    `digest` is 128 bits of its content; `at_ms` is 0 for a retraction and for a comment too vague to be a signal.
    """

    digest: str
    user_id: str
    kind: str
    at_ms: int = 0
    line: str = ""
    """The line that the event names, if it is not the one of `JoinedResponse`."""
    came_ms: int = 0
    """Append time, as long as the response is unknown: each event waits for it during a window of its own."""


class Signal(Struct, omit_defaults=True):
    """The current content of a feedback event. `value` is kept in the bytes that a batch will hold."""

    kind: str
    user_id: str
    value: Raw
    at_ms: int
    choice: int = 0
    tags: tuple[str, ...] = ()


class JoinedResponse(StoredValue):
    """One response and its feedback. `revision` counts the changes of the example."""

    line: str
    since_ms: int
    responded_ms: int | None = None
    version: str | None = None
    choices: tuple[int, ...] | None = None
    answer_bytes: int = 0
    """Size of the `StoredResponse` in bytes."""
    revision: int = 0
    unbatched: int = 0
    """No revision up to this one was ever in a batch: the example was taken back while it was still pending."""
    events: dict[str, SeenEvent] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)
    """`<user>|<kind>|<choice>` -> the newest event in that slot, taken back or not."""
    signals: dict[str, Signal] = field(default_factory=dict)
    """Current signals by event_id."""
    retractions: dict[str, str] = field(default_factory=dict)
    """`retraction_key` of an event that has not arrived -> the retraction that waits for it."""
    expired: bool = False
    """Whether its window is closed. Only a trace is kept then."""
    erased: bool = False
    """Whether this is the trace of an erased response."""
    unusable: bool = False
    """Whether this is the trace of a response that was set aside, because what was stored for it was unusable."""

    @property
    def answered(self) -> bool:
        """Whether the response itself has arrived."""
        return self.responded_ms is not None

    @property
    def waited_in_vain(self) -> bool:
        """Whether this is the trace of a response that has not come. An earlier release kept one: it means nothing."""
        return self.expired and not self.answered

    @property
    def expires_ms(self) -> int:
        """When the window closes or, once it is closed, when the trace is deleted."""
        start = self.since_ms if self.responded_ms is None else self.responded_ms
        return start + WINDOW_MS + (LATE_MS if self.expired else 0)

    @property
    def consistent(self) -> bool:
        """Whether its parts agree with each other. They always do, unless an earlier release stored something else."""
        if not 0 <= self.unbatched <= self.revision or len(self.signals) > MAX_SIGNALS:
            return False
        events = self.events
        for holder in self.slots.values():
            if holder not in events:
                return False
        for event_id, signal in self.signals.items():
            if event_id not in events or signal.kind not in KIND_BY_NAME:
                return False
        return True

    def line_of(self, event_id: str | None) -> str:
        """Return the line of an event: its own one as long as the response, and with it the line, is unknown."""
        seen = None if self.answered or event_id is None else self.events.get(event_id)
        return self.line if seen is None else seen.line or self.line

    @classmethod
    def from_response(cls, response: StoredResponse, stored_bytes: int) -> JoinedResponse:
        """Return the join state of a response without feedback."""
        return cls(
            line=response.line,
            since_ms=response.at_ms,
            responded_ms=response.at_ms,
            version=response.version,
            choices=response.valid_choices,
            answer_bytes=stored_bytes,
        )


class OpenBatch(StoredValue):
    """The batch of one line that is being filled. `number` is the one it will get.

    `examples` and `size` say when it is full. It is cut by its age whatever they say.
    """

    number: int = 0
    opened_ms: int = 0
    examples: int = 0
    size: int = 0


class PendingExample(StoredValue):
    """An example in the open batch. Its content is taken from the join state when the batch is cut."""

    fresh: bool
    """Whether no revision was ever in a batch. If a fresh example is taken back, no batch has to mention it."""
    size: int
    waiting: tuple[str, ...] = ()
    """The events whose outcome is `batched` once the batch is cut."""


class StreamClock(StoredValue, array_like=True):
    """Times of a partition, in ms since the epoch, by which data expires and batches are cut."""

    stream_ms: int = 0
    """Stream time: the append time of the newest input record, unless that jumped ahead."""
    ahead_since_ms: int = 0
    """Since when append times are ahead of stream time; 0 if they are not."""
    swept_ms: int = 0
    """Stream time of the last complete search for what has expired."""
    oldest_batch_ms: int = 0
    """No open batch that holds examples was opened before this; 0 if there is none."""
    unindexed_from: str = "b/"
    """Where to continue adding an earlier release's batches and tallies to the indexes; empty when all are."""

    def observe(self, append_ms: int) -> None:
        """Move stream time to the append time of an input record, also backwards.

        A jump ahead by more than `JUMP_MS` counts only once the records after it span as much time: it may be a silence
        that ended, but also the wrong clock of one record, or of a broker whose clock is set right soon.
        """
        if append_ms > self.stream_ms + JUMP_MS:
            if not 0 < self.ahead_since_ms <= append_ms:
                self.ahead_since_ms = append_ms
            if append_ms < self.ahead_since_ms + JUMP_MS:
                return
            self.stream_ms = self.ahead_since_ms
            if append_ms > self.stream_ms + JUMP_MS:
                self.ahead_since_ms = append_ms
                return
        self.stream_ms, self.ahead_since_ms = append_ms, 0


class _Decoders(dict[type, msgspec.json.Decoder[Any]]):
    def __missing__(self, kind: type) -> msgspec.json.Decoder[Any]:
        decoder = self[kind] = msgspec.json.Decoder(kind)
        return decoder


_DECODERS = _Decoders()


# --- keys -------------------------------------------------------------------------------------------------------

_CLOCK: Final = b"m/clock"
_LATEST_MS: Final = 10**16 - 1
_LATEST_PLAUSIBLE_MS: Final = 4_102_444_800_000
"""The year 2100."""
_NUMBERS: Final = 2**53
"""Batch numbers are below this, so that every JSON parser can read them."""


def response_key(response_id: bytes) -> bytes:
    """Return the key of a `StoredResponse`."""
    return b"a/" + response_id


def joined_key(response_id: bytes) -> bytes:
    """Return the key of a `JoinedResponse`."""
    return b"j/" + response_id


def pending_key(line: str, response_id: bytes) -> bytes:
    """Return the key of a `PendingExample`; with an empty id, the prefix of the line's open batch."""
    return b"p/%s/%s" % (line.encode(), response_id)


def _batch_key(line: str) -> bytes:
    return b"b/" + line.encode()


def expiry_key(at_ms: int, response_id: bytes) -> bytes:
    """Return the place of a response in the time index."""
    return b"x/%016d/%s" % (_in_index(at_ms), response_id)


def _opened_key(at_ms: int, line: str) -> bytes:
    return b"d/%016d/%s" % (_in_index(at_ms), line.encode())


def _in_index(at_ms: int) -> int:
    return max(0, min(at_ms, _LATEST_MS))


def tally_key(version: str, user_id: str) -> bytes:
    """Return the key of a tally."""
    return b"t/" + join_ids(version, user_id).encode()


def _tally_date_key(date: str, place: bytes) -> bytes:
    return b"y/%s/%s" % (date.encode(), place[2:])


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key after all that start with `prefix`, whose last byte must be below 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


# --- access -----------------------------------------------------------------------------------------------------


class PartitionState:
    """Typed reads and writes of one partition's store. `key` is a response_id as bytes throughout.

    Keeps the time index in step with the join state. It decides nothing, and is valid for one turn only.
    """

    __slots__ = ("_indexed", "_now_ms", "_opened", "damaged", "store")

    def __init__(self, store: State, now_ms: int) -> None:
        self.store = store
        self._now_ms = now_ms
        self._indexed: dict[bytes, int] = {}
        """Where the time index holds the responses read in this turn."""
        self._opened: dict[str, int | None] = {}
        """Where the index of open batches holds the lines read in this turn; None if it does not."""
        self.damaged: set[bytes] = set()
        """Responses of this turn whose stored values cannot be used."""

    @property
    def clock(self) -> StreamClock:
        """The times of the partition. A clock that is missing or cannot be read starts at zero."""
        value = self.store.get(_CLOCK)
        return (None if value is None else StreamClock.read(value)) or StreamClock()

    def put_clock(self, clock: StreamClock) -> None:
        """Store the times of the partition, if they changed."""
        value = clock.to_json()
        if value != self.store.get(_CLOCK):
            self.store.put(_CLOCK, value)

    # responses and their feedback

    def response(self, key: bytes) -> StoredResponse | None:
        """Return the response, or None if it has not arrived or cannot be read."""
        value = self.store.get(response_key(key))
        return None if value is None else StoredResponse.read(value)

    def joined(self, key: bytes) -> JoinedResponse | None:
        """Return the join state of a response, or None if there is no response and no feedback.

        If it cannot be used, return the trace to keep instead, and add the response to `damaged`.
        """
        value = self.store.get(joined_key(key))
        joined: JoinedResponse | None
        if value is not None:
            joined = JoinedResponse.read(value)
        else:
            value = self.store.get(response_key(key))
            if value is None:
                return None
            response = StoredResponse.read(value)
            joined = None if response is None else JoinedResponse.from_response(response, len(value))
        if joined is None or not joined.consistent:
            self.damaged.add(key)
            return self.unusable_trace(_line_in(value) if joined is None else joined.line)
        self._indexed[key] = joined.expires_ms
        if max(joined.since_ms, joined.responded_ms or 0) > _LATEST_PLAUSIBLE_MS:  # it would never expire
            joined.since_ms = min(joined.since_ms, self._now_ms)
            joined.responded_ms = joined.responded_ms and min(joined.responded_ms, self._now_ms)
        return joined

    def unusable_trace(self, line: str, revision: int = 0) -> JoinedResponse:
        """Return the trace of a response that is set aside now."""
        return JoinedResponse(
            line=line,
            since_ms=self._now_ms,
            responded_ms=self._now_ms,
            revision=revision,
            expired=True,
            unusable=True,
        )

    def put_response(self, key: bytes, value: bytes) -> None:
        """Store a response, as encoded by `StoredResponse.to_json`."""
        self.store.put(response_key(key), value)

    def put_joined(self, key: bytes, joined: JoinedResponse) -> int:
        """Store the join state of a response and return its size in bytes."""
        value = joined.to_json()
        self.store.put(joined_key(key), value)
        self.index(key, joined)
        return len(value)

    def index(self, key: bytes, joined: JoinedResponse) -> None:
        """Move a response to its place in the time index."""
        at, before = joined.expires_ms, self._indexed.get(key)
        if at != before:
            if before is not None:
                self.store.delete(expiry_key(before, key))
            self.store.put(expiry_key(at, key), b"")
            self._indexed[key] = at

    def delete_response(self, key: bytes) -> None:
        """Delete a response without its join state."""
        self.store.delete(response_key(key))

    def delete(self, key: bytes, joined: JoinedResponse) -> None:
        """Delete a response, its join state and its entry in the time index."""
        self.store.delete(expiry_key(joined.expires_ms, key))
        self.store.delete(response_key(key))
        self.store.delete(joined_key(key))
        self._indexed.pop(key, None)

    def expired(self, stream_ms: int, at_most: int) -> list[tuple[bytes, bytes]]:
        """Return (place in the time index, response) of those whose time is over, earliest first."""
        places = islice(self.store.scan(b"x/", expiry_key(stream_ms, b"")), at_most)
        return [(place, place.split(b"/", 2)[2]) for place, _ in places]

    # the open batch of each line

    def open_batch(self, line: str) -> OpenBatch:
        """Return the open batch of a line; its first one if there was none.

        If it cannot be read, its number is unknown, so it gets one that no earlier batch can have: the time in ms.
        """
        value = self.store.get(_batch_key(line))
        batch = OpenBatch(number=1) if value is None else OpenBatch.read(value)
        if (
            batch is not None and batch.number == 0 < batch.examples
        ):  # an earlier release did not store the number 1
            batch.number = 1
        if batch is None or not 1 <= batch.number < _NUMBERS:
            batch = OpenBatch(number=max(1, self._now_ms))
        batch.examples, batch.size = max(0, batch.examples), max(0, batch.size)
        self._opened[line] = batch.opened_ms if batch.examples else None
        return batch

    def put_open_batch(self, line: str, batch: OpenBatch) -> None:
        """Store the open batch of a line, after `open_batch` has returned it or an earlier one in this turn."""
        at, before = batch.opened_ms if batch.examples else None, self._opened.get(line)
        if at != before:
            if before is not None:
                self.store.delete(_opened_key(before, line))
            # If it is read first, the write buffer drops it when the batch is cut within the same slice.
            if at is not None and self.store.get(_opened_key(at, line)) is None:
                self.store.put(_opened_key(at, line), b"")
            self._opened[line] = at
        if batch == OpenBatch(number=1):
            self.store.delete(_batch_key(line))
        else:
            self.store.put(_batch_key(line), batch.to_json())

    def oldest_batches(self, at_most: int) -> list[tuple[bytes, int, str]]:
        """Return (place in the index, time in ms, line) of the open batches that hold examples, oldest first."""
        places = islice(self.store.scan(b"d/", prefix_end(b"d/")), at_most)
        return [(place, int(place[2:18]), place[19:].decode()) for place, _ in places]

    def pending(self, line: str, key: bytes) -> PendingExample | None:
        """Return a response's example in the open batch, if it is there."""
        value = self.store.get(pending_key(line, key))
        return None if value is None else self._pending_example(key, value)

    def pending_examples(self, line: str, at_most: int) -> list[tuple[bytes, PendingExample]]:
        """Return (key, example) of what the open batch of a line holds."""
        prefix = pending_key(line, b"")
        found = list(islice(self.store.scan(prefix, prefix_end(prefix)), at_most))
        return [
            (place[len(prefix) :], self._pending_example(place[len(prefix) :], value))
            for place, value in found
        ]

    def _pending_example(self, key: bytes, value: bytes) -> PendingExample:
        pending = PendingExample.read(value)
        if pending is None:
            # Which of its events wait for the cut is not known, so they all do.
            joined = self.joined(key)
            pending = PendingExample(fresh=False, size=0, waiting=tuple(joined.signals) if joined else ())
        return pending

    def put_pending(self, line: str, key: bytes, example: PendingExample) -> None:
        """Store an example of the open batch."""
        self.store.put(pending_key(line, key), example.to_json())

    def delete_pending(self, line: str, key: bytes) -> None:
        """Remove an example from the open batch."""
        self.store.delete(pending_key(line, key))

    # tallies

    def tally(self, version: str, user_id: str) -> bytes | None:
        """Return a user's newest tally of a version, as it was sent."""
        return self.store.get(tally_key(version, user_id))

    def put_tally(self, version: str, user_id: str, value: bytes, date: str, before: str | None) -> None:
        """Store a user's newest tally of a version, changed on `date` (as ISO 8601) and, until then, on `before`."""
        place = tally_key(version, user_id)
        self.store.put(place, value)
        if date != before:
            if before is not None:
                self.store.delete(_tally_date_key(before, place))
            self.store.put(_tally_date_key(date, place), b"")

    def delete_tally(self, place: bytes, date: str | None) -> None:
        """Delete the tally stored at `place`, which was changed on `date`."""
        self.store.delete(place)
        if date is not None:
            self.store.delete(_tally_date_key(date, place))

    def old_tallies(self, before: str, at_most: int) -> list[tuple[bytes, str, bytes]]:
        """Return (place in the index, date, place) of the tallies that were last changed before a date."""
        found = islice(self.store.scan(b"y/", b"y/" + before.encode()), at_most)
        return [(index, index[2:12].decode(), b"t/" + index[13:]) for index, _ in found]

    # what an earlier release stored without indexes

    def index_stored(self, start: str, at_most: int, date_of: Callable[[bytes], str | None]) -> str:
        """Add batches and tallies from `start` on to the indexes. Return where to continue; empty at the end.

        `date_of` returns the date of a tally's newest change, or None if it cannot be read.
        """
        prefix = start[:2].encode()
        found = list(islice(self.store.scan(start.encode(), prefix_end(prefix)), at_most))
        for place, value in found:
            if prefix == b"b/":
                self._index_batch(place[2:].decode())
            elif (date := date_of(value)) is not None:
                self.store.put(_tally_date_key(date, place), b"")
        if len(found) == at_most:
            return found[-1][0].decode() + "\x00"
        return "t/" if prefix == b"b/" else ""

    def _index_batch(self, line: str) -> None:
        batch = self.open_batch(line)
        self._opened[line] = None
        if self.pending_examples(line, 1):
            batch.examples = max(1, batch.examples)
        self.put_open_batch(line, batch)


def tally_ids(place: bytes) -> tuple[str, str]:
    """Return the version and the user of a `tally_key`."""
    version, *users = split_ids(place[2:].decode())
    return version, "/".join(users)


def _line_in(value: bytes) -> str:
    """Return the line that a value names, although it cannot be read as a whole."""
    try:
        line = msgspec.json.decode(value).get("line")
    except (msgspec.MsgspecError, ValueError, AttributeError, RecursionError):
        line = None
    return line if isinstance(line, str) and LINE.fullmatch(line) else UNKNOWN_LINE
