"""State of one partition: its keys, its values, and typed access to both.

Keys are ordered by their bytes:

| key | value |
| --- | --- |
| `a/<response_id>` | `StoredResponse`: the response, written once |
| `j/<response_id>` | `JoinedResponse`: the response's feedback; exists from the first feedback event on |
| `x/<time>/<response_id>` | empty: the time index by which windows close |
| `b/<line>` | `OpenBatch`: the batch being filled |
| `p/<line>/<response_id>` | `PendingExample`: an example in that batch |
| `t/<version>/<user_id>` | the newest tally, in the bytes that were sent |
| `m/swept` | the append time of the last complete pass over the time index, in ms |
| `m/erasing`, `e/`, `f/`, `g/`, `r/`, `w/` | erasures: see `erasure/process.py` |

Values are JSON written by msgspec, because every record reads and writes several of them. Only this service writes
them, so a value that cannot be read is a bug.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final, Self

import msgspec
from msgspec import Raw, Struct, field

from shared.stream.step import State
from shared.topics import DAY_MS, WINDOW_DAYS

WINDOW_MS: Final = WINDOW_DAYS * DAY_MS
LATE_MS: Final = WINDOW_MS
"""How long after its window a response is remembered, so that its feedback is reported as `late`, not `unmatched`."""

encode = msgspec.json.Encoder().encode


# --- values -----------------------------------------------------------------------------------------------------


class StoredValue(Struct, omit_defaults=True):
    """Base of the values in the store."""

    def to_json(self) -> bytes:
        """Return the value as it is stored."""
        return encode(self)

    @classmethod
    def from_json(cls, value: bytes) -> Self:
        """Return the value stored as `value`."""
        return _DECODERS[cls].decode(value)  # type: ignore[no-any-return]


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

    `digest` is 128 bits of its content; `at_ms` is 0 for events that never became a signal.
    """

    digest: str
    user_id: str
    kind: str
    at_ms: int = 0


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

    @property
    def answered(self) -> bool:
        """Whether the response itself has arrived."""
        return self.responded_ms is not None

    @property
    def expires_ms(self) -> int:
        """When the window closes or, once it is closed, when the trace is deleted."""
        start = self.since_ms if self.responded_ms is None else self.responded_ms
        return start + WINDOW_MS + (LATE_MS if self.expired else 0)

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
    """The batch of one line that is being filled. `number` is the one it will get."""

    number: int = 1
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


class _Decoders(dict[type, msgspec.json.Decoder[Any]]):
    def __missing__(self, kind: type) -> msgspec.json.Decoder[Any]:
        decoder = self[kind] = msgspec.json.Decoder(kind)
        return decoder


_DECODERS = _Decoders()


# --- keys -------------------------------------------------------------------------------------------------------

_SWEPT: Final = b"m/swept"


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


def _expiry_key(at_ms: int, response_id: bytes) -> bytes:
    return b"x/%016d/%s" % (at_ms, response_id)


def _tally_key(version: str, user_id: str) -> bytes:
    return b"t/%s/%s" % (version.encode(), user_id.encode())


def prefix_end(prefix: bytes) -> bytes:
    """Return the first key after all that start with `prefix`, whose last byte must be below 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


# --- access -----------------------------------------------------------------------------------------------------


class PartitionState:
    """Typed reads and writes of one partition's store. `key` is a response_id as bytes throughout.

    Keeps the time index in step with the join state. It decides nothing, and is valid for one turn only.
    """

    __slots__ = ("_indexed", "store")

    def __init__(self, store: State) -> None:
        self.store = store
        self._indexed: dict[bytes, int] = {}
        """Where the time index holds the responses read in this turn."""

    # responses and their feedback

    def response(self, key: bytes) -> StoredResponse | None:
        """Return the response, if it has arrived."""
        value = self.store.get(response_key(key))
        return None if value is None else StoredResponse.from_json(value)

    def joined(self, key: bytes) -> JoinedResponse | None:
        """Return the join state of a response, or None if there is no response and no feedback."""
        value = self.store.get(joined_key(key))
        if value is not None:
            joined = JoinedResponse.from_json(value)
        else:
            response = self.store.get(response_key(key))
            if response is None:
                return None
            joined = JoinedResponse.from_response(StoredResponse.from_json(response), len(response))
        self._indexed[key] = joined.expires_ms
        return joined

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
                self.store.delete(_expiry_key(before, key))
            self.store.put(_expiry_key(at, key), b"")
            self._indexed[key] = at

    def delete_response(self, key: bytes) -> None:
        """Delete a response without its join state."""
        self.store.delete(response_key(key))

    def delete(self, key: bytes, joined: JoinedResponse) -> None:
        """Delete a response, its join state and its entry in the time index."""
        self.store.delete(_expiry_key(joined.expires_ms, key))
        self.store.delete(response_key(key))
        self.store.delete(joined_key(key))
        self._indexed.pop(key, None)

    def expired(self, now_ms: int, at_most: int) -> list[bytes]:
        """Return the responses whose time is over, earliest first."""
        places = islice(self.store.scan(b"x/", _expiry_key(now_ms, b"")), at_most)
        return [place.split(b"/", 2)[2] for place, _ in places]

    @property
    def swept_ms(self) -> int | None:
        """The time of the last pass over the time index that reached its end."""
        value = self.store.get(_SWEPT)
        return None if value is None else int(value)

    def put_swept(self, now_ms: int) -> None:
        """Remember that the pass over the time index at `now_ms` reached its end."""
        self.store.put(_SWEPT, str(now_ms).encode())

    # the open batch of each line

    def open_batch(self, line: str) -> OpenBatch:
        """Return the open batch of a line; its first one if there was none."""
        value = self.store.get(_batch_key(line))
        return OpenBatch() if value is None else OpenBatch.from_json(value)

    def open_batches(self) -> list[tuple[str, OpenBatch]]:
        """Return (line, open batch) of every line seen in this partition."""
        found = self.store.scan(b"b/", prefix_end(b"b/"))
        return [(place[2:].decode(), OpenBatch.from_json(value)) for place, value in found]

    def put_open_batch(self, line: str, batch: OpenBatch) -> None:
        """Store the open batch of a line."""
        self.store.put(_batch_key(line), batch.to_json())

    def pending(self, line: str, key: bytes) -> PendingExample | None:
        """Return a response's example in the open batch, if it is there."""
        value = self.store.get(pending_key(line, key))
        return None if value is None else PendingExample.from_json(value)

    def pending_examples(self, line: str) -> list[tuple[bytes, PendingExample]]:
        """Return (key, example) of everything in the open batch of a line."""
        prefix = pending_key(line, b"")
        found = self.store.scan(prefix, prefix_end(prefix))
        return [(place[len(prefix) :], PendingExample.from_json(value)) for place, value in found]

    def put_pending(self, line: str, key: bytes, example: PendingExample) -> None:
        """Store an example of the open batch."""
        self.store.put(pending_key(line, key), example.to_json())

    def delete_pending(self, line: str, key: bytes) -> None:
        """Remove an example from the open batch."""
        self.store.delete(pending_key(line, key))

    # tallies

    def tally(self, version: str, user_id: str) -> bytes | None:
        """Return a user's newest tally of a version, as it was sent."""
        return self.store.get(_tally_key(version, user_id))

    def put_tally(self, version: str, user_id: str, value: bytes) -> None:
        """Store a user's newest tally of a version."""
        self.store.put(_tally_key(version, user_id), value)
