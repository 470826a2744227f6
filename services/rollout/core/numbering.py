"""Sequence numbers of rollout records after the state was lost: they continue above every record in the log. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from services.rollout.core import store
from services.rollout.core.decision import LineState
from services.rollout.core.trial import Trial
from shared.events import to_ms
from shared.records import Record
from shared.stream.state_store import MemoryStore
from shared.stream.write_buffer import WriteBuffer
from shared.topics import MAX_MESSAGE_BYTES, MODEL_ROLLOUT, OPERATOR_COMMANDS
from shared.versions import RolloutRecord


class RolloutNumbering:
    """`Numbering` of `model.rollout`."""

    topic = MODEL_ROLLOUT.name
    processed_once = frozenset({OPERATOR_COMMANDS.name})

    def is_needed(self, key: bytes) -> bool:
        """Return whether the key is that of a line."""
        return key.startswith(b"l/")

    def writes(self, records: Iterable[Record], state: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Return the lines whose newest rollout record is in the log but not in the state."""
        newest: dict[str, RolloutRecord] = {}
        for record in records:
            rollout = RolloutRecord.from_json(record.value)
            before = newest.get(rollout.line)
            if before is None or rollout.seq > before.seq:
                newest[rollout.line] = rollout
        memory = MemoryStore()
        memory.apply(state, 0)
        buffer = WriteBuffer(memory, MAX_MESSAGE_BYTES)
        for line, rollout in sorted(newest.items()):
            known = store.read_line(buffer, line)
            if known.record is None or known.record.seq < rollout.seq:
                store.write(buffer, LineState(line=line, record=rollout, waiting=rollout.waiting), ())
                if rollout.canary is not None:  # its step begins again
                    trial = Trial.begin(rollout, to_ms(rollout.decided_at))
                    store.write_watch(buffer, line, store.CanaryWatch(trial=trial))
        return {key: value for key, value in buffer.writes.items() if value is not None}
