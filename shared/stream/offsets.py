"""The positions of one partition as they stand in the changelog, beside the state they belong to."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from shared.errors import Fatal


@dataclass(slots=True)
class Positions:
    """The next offset to read per input topic, and how far the partition's time has come (ms since epoch)."""

    offsets: dict[str, int] = field(default_factory=dict)
    time_ms: int = 0
    rereads: dict[str, int] = field(default_factory=dict)
    """The next offset to read again, per output topic of which a reread is under way."""

    def encode(self) -> bytes:
        """The value of the changelog record."""
        said = {"schema_version": 1, "offsets": self.offsets, "time_ms": self.time_ms}
        return orjson.dumps(said | {"rereads": self.rereads} if self.rereads else said)

    @classmethod
    def decode(cls, value: bytes) -> Positions:
        """Raises `Fatal` where the changelog was not written by an engine of ours."""
        try:
            found = orjson.loads(value)
            offsets = {str(topic): int(offset) for topic, offset in found["offsets"].items()}
            rereads = {str(topic): int(offset) for topic, offset in found.get("rereads", {}).items()}
            return cls(offsets, int(found["time_ms"]), rereads)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Fatal(
                f"The positions in the changelog cannot be read ({error}). Was it written by another program?"
            ) from error

    def copy(self) -> Positions:
        """One that can be changed by itself."""
        return Positions(dict(self.offsets), self.time_ms, dict(self.rereads))
