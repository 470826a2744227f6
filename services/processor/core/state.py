"""What the processor remembers, and under which keys.

Each partition's state is ordered by key bytes:

| key | value |
| --- | --- |
| `a/<response_id>` | `Answer`: the response, written once |
| `j/<response_id>` | `Joined`: what was said about it; from the first feedback on |
| `x/<time>/<response_id>` | nothing: the time index by which windows close |
| `b/<line>` | `OpenBatch`: the batch being filled |
| `p/<line>/<response_id>` | `Pending`: an example in it |
| `t/<version>/<user_id>` | the newest `TallyOut`, as it was written |
| `m/swept` | the append time of the last sweep, in ms |
| `m/erasing`, `e/`, `f/`, `g/`, `r/`, `w/` | what erasures keep: see `process.py` |

Values are JSON by msgspec: they are read and written several times for each record, and come from nowhere else.
"""

from __future__ import annotations

from typing import Any, Self

import msgspec
from msgspec import Raw, Struct, field

SWEPT = b"m/swept"

encode = msgspec.json.Encoder().encode


class Stored(Struct, omit_defaults=True):
    """A value in the store. Only this service wrote it, so a fault in reading it is a fault of ours."""

    def to_json(self) -> bytes:
        return encode(self)

    @classmethod
    def from_json(cls, value: bytes) -> Self:
        return _DECODERS[cls].decode(value)  # type: ignore[no-any-return]


class Answer(Stored):
    """A response as it came. `messages` and `choices` are kept as they will stand in a batch."""

    line: str
    version: str
    status: str
    at_ms: int
    messages: Raw
    choices: Raw
    indices: tuple[int, ...] = ()
    """The choices that it has."""
    user_id: str | None = None

    def says_the_same(self, other: Answer) -> bool:
        """Whether the same was asked and answered, however it travelled."""
        return (self.line, self.version, self.status, bytes(self.messages), bytes(self.choices)) == (
            other.line, other.version, other.status, bytes(other.messages), bytes(other.choices),
        )  # fmt: skip

    @property
    def known_choices(self) -> tuple[int, ...] | None:
        """None where any may be spoken of: the request failed, and has no answers to choose from."""
        return self.indices if self.status == "completed" else None


class Said(Struct, omit_defaults=True):
    """A feedback event as remembered, to tell duplicates and owners. `digest`: 128 bits of its content."""

    digest: str
    user_id: str
    kind: str
    at_ms: int = 0


class Signal(Struct, omit_defaults=True):
    """What stands of a feedback event. `value` as it will stand in a batch."""

    kind: str
    user_id: str
    value: Raw
    at_ms: int
    choice: int = 0
    tags: tuple[str, ...] = ()


class Joined(Stored):
    """One response and what was said about it. `revision` counts the example's changes."""

    line: str
    since_ms: int
    responded_ms: int | None = None
    version: str | None = None
    choices: tuple[int, ...] | None = None
    answer_bytes: int = 0
    """How much room the answer takes."""
    revision: int = 0
    unbatched: int = 0
    """Revisions up to this one never left: the example was taken back while it was still pending."""
    events: dict[str, Said] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)
    signals: dict[str, Signal] = field(default_factory=dict)
    retractions: dict[str, str] = field(default_factory=dict)
    """"<event to take back> <whose>" -> the retraction that waits for it."""
    expired: bool = False
    erased: bool = False
    """The trace of a response that was erased, window or not."""

    @property
    def answered(self) -> bool:
        return self.responded_ms is not None

    @classmethod
    def of_answer(cls, answer: Answer, stored_bytes: int) -> Joined:
        """Of a response that nothing was said about yet."""
        return cls(
            line=answer.line,
            since_ms=answer.at_ms,
            responded_ms=answer.at_ms,
            version=answer.version,
            choices=answer.known_choices,
            answer_bytes=stored_bytes,
        )


class OpenBatch(Stored):
    """The batch of one line that is being filled. `number` is the one it will get."""

    number: int = 1
    opened_ms: int = 0
    examples: int = 0
    size: int = 0


class Pending(Stored):
    """An example in the open batch. Its content is what `Joined` says when the batch is cut."""

    fresh: bool
    """No revision of it was ever in a batch: if it is taken back before the cut, nothing need be said."""
    size: int
    waiting: tuple[str, ...] = ()


class _Decoders(dict[type, msgspec.json.Decoder[Any]]):
    def __missing__(self, kind: type) -> msgspec.json.Decoder[Any]:
        decoder = self[kind] = msgspec.json.Decoder(kind)
        return decoder


_DECODERS = _Decoders()


def answer_key(response_id: bytes) -> bytes:
    return b"a/" + response_id


def joined_key(response_id: bytes) -> bytes:
    return b"j/" + response_id


def expiry_key(at_ms: int, response_id: bytes) -> bytes:
    return b"x/%016d/%s" % (at_ms, response_id)


def batch_key(line: str) -> bytes:
    return b"b/" + line.encode()


def pending_key(line: str, response_id: bytes) -> bytes:
    return b"p/%s/%s" % (line.encode(), response_id)


def tally_key(version: str, user_id: str) -> bytes:
    return b"t/%s/%s" % (version.encode(), user_id.encode())


def after(prefix: bytes) -> bytes:
    """The first key behind all that begin with `prefix` (which ends in a byte below 0xff)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
