"""What the processor remembers, and under which keys.

Each partition's state is ordered by key bytes:

| key | value |
| --- | --- |
| `a/<response_id>` | the response as it came (`ChatResponse`), written once |
| `j/<response_id>` | `Joined`: what was said about it |
| `x/<time>/<response_id>` | nothing: the time index by which windows close |
| `b/<line>` | `OpenBatch`: the batch being filled |
| `p/<line>/<response_id>` | `Pending`: an example in it |
| `t/<version>/<user_id>` | `Tally` |
| `m/swept` | the append time of the last sweep, in ms |
"""

from __future__ import annotations

from typing import Self

from pydantic import Field

from shared.events import Line, Part, Signal

SWEPT = b"m/swept"


class Stored(Part):
    """A value in the store. Only this service wrote it, so a fault in reading it is a fault of ours."""

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_defaults=True).encode()

    @classmethod
    def from_json(cls, value: bytes) -> Self:
        return cls.model_validate_json(value)


class Said(Part):
    """A feedback event as remembered, to tell duplicates and owners. `digest`: 128 bits of its content."""

    digest: str
    user_id: str
    kind: str
    at_ms: int = 0


class Joined(Stored):
    """One response and what was said about it. `revision` counts the example's changes."""

    line: Line
    since_ms: int
    responded_ms: int | None = None
    version: str | None = None
    response_digest: str | None = None
    choices: tuple[int, ...] | None = None
    revision: int = 0
    unbatched: int = 0
    """Revisions up to this one never left: the example was taken back while it was still pending."""
    events: dict[str, Said] = Field(default_factory=dict)
    slots: dict[str, str] = Field(default_factory=dict)
    signals: dict[str, Signal] = Field(default_factory=dict)
    retractions: dict[str, str] = Field(default_factory=dict)
    """Event to take back -> the retraction that waits for it."""
    expired: bool = False

    @property
    def answered(self) -> bool:
        return self.responded_ms is not None


class OpenBatch(Stored):
    """The batch of one line that is being filled. `number` is the one it will get."""

    number: int = 1
    opened_ms: int = 0
    examples: int = 0
    size: int = 0


class Pending(Stored):
    """An example in the open batch. Its content is what `Joined` says when the batch is cut."""

    waiting: tuple[str, ...] = ()
    fresh: bool
    """No revision of it was ever in a batch: if it is taken back before the cut, nothing need be said."""
    size: int


def answer_key(response_id: str) -> bytes:
    return b"a/" + response_id.encode()


def joined_key(response_id: str) -> bytes:
    return b"j/" + response_id.encode()


def expiry_key(at_ms: int, response_id: str) -> bytes:
    return b"x/%016d/%s" % (at_ms, response_id.encode())


def batch_key(line: str) -> bytes:
    return b"b/" + line.encode()


def pending_key(line: str, response_id: str) -> bytes:
    return b"p/%s/%s" % (line.encode(), response_id.encode())


def tally_key(version: str, user_id: str) -> bytes:
    return b"t/%s/%s" % (version.encode(), user_id.encode())


def after(prefix: bytes) -> bytes:
    """The first key behind all that begin with `prefix` (which ends in a byte below 0xff)."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
