"""Numbers of batches after the state was lost: they continue above every batch in the log. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.processor.core.state import OpenBatch
from shared.records import Record
from shared.topics import TRAINING_BATCHES
from shared.versions import batch_position

_PREFIX = b"b/"


class BatchNumbering:
    """`Numbering` of `training.batches`."""

    topic = TRAINING_BATCHES.name
    processed_once: frozenset[str] = frozenset()

    def is_needed(self, key: bytes) -> bool:
        """Return whether the key is that of an open batch."""
        return key.startswith(_PREFIX)

    def writes(self, records: Iterable[Record], state: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Return the open batches whose number is already in the log, with the next free one."""
        highest: dict[str, int] = {}
        for record in records:
            batch_id = (record.key or b"").decode()
            line, number = batch_id.rsplit("-", 2)[0], batch_position(batch_id)[1]
            highest[line] = max(number, highest.get(line, 0))
        writes = {}
        for line, number in sorted(highest.items()):
            key = _PREFIX + line.encode()
            batch = OpenBatch.from_json(state[key]) if key in state else OpenBatch()
            if batch.number <= number:
                batch.number = number + 1
                writes[key] = batch.to_json()
        return writes
