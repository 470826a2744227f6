"""What feedback keeps of the log: versions and rollout in memory, outcomes in Redis, where they may be lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import structlog

from services.feedback.core.receipts import Receipt, make_receipt
from shared.adapters import redis_keys
from shared.errors import Rejected
from shared.events import Outcome, OutcomeKind
from shared.ports import Cache, Position
from shared.records import Record
from shared.topics import FEEDBACK_OUTCOMES, MODEL_ROLLOUT, MODEL_VERSIONS
from shared.versions import ModelVersion, RolloutRecord

PENDING_MARK = b"pending"
"""Stands where the outcome will be; believed for a few seconds only."""
INDEX_POSITIONS = "loopwright:receipt-positions"
"""How far the outcomes are in Redis. It lies there too: if Redis is wiped, the index begins again."""
log = structlog.get_logger(__name__)


class VersionsView:
    """The versions and the newest rollout record of every line. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[str, dict[str, ModelVersion]] = {}
        self._rollout: dict[str, RolloutRecord] = {}

    def apply(self, records: Sequence[Record]) -> None:
        """Records of `model.versions` and `model.rollout`, in any order; what cannot be read is passed over, loudly."""
        for record in records:
            if record.value is None:
                continue
            try:
                self._take(record)
            except Rejected as error:
                log.warning("unreadable", topic=record.topic, offset=record.offset, error=str(error))

    def _take(self, record: Record) -> None:
        if record.topic == MODEL_VERSIONS.name:
            version = ModelVersion.from_json(record.value)
            with self._lock:
                self._versions.setdefault(version.line, {})[version.ref.version] = version
        elif record.topic == MODEL_ROLLOUT.name:
            decided = RolloutRecord.from_json(record.value)
            with self._lock:
                known = self._rollout.get(decided.line)
                if known is None or decided.seq > known.seq:
                    self._rollout[decided.line] = decided

    def follow(self, outcome: Outcome) -> Receipt:
        """The receipt of an event with this outcome, as things stand now."""
        with self._lock:
            versions = list(self._versions.get(outcome.line, {}).values())
            rollout = self._rollout.get(outcome.line)
        return make_receipt(outcome, versions, rollout)


class OutcomeIndex:
    """Outcomes by event, in Redis. A lost write is a miss, which the log answers."""

    def __init__(self, cache: Cache, *, ttl_s: float, pending_ttl_s: float) -> None:
        self._cache = cache
        self._ttl_s = ttl_s
        self._pending_ttl_s = pending_ttl_s
        self._next: dict[Position, int] = {}

    def starts(self) -> dict[Position, int]:
        """Where to go on reading. Nothing if Redis no longer knows."""
        raw = self._cache.get(INDEX_POSITIONS)
        try:
            known = json.loads(raw or b"{}")
            self._next = {(FEEDBACK_OUTCOMES.name, int(p)): int(offset) for p, offset in known.items()}
        except (ValueError, AttributeError):
            self._next = {}
        return dict(self._next)

    def forget(self) -> None:
        """The log no longer holds what the positions point at: begin again at the next start."""
        self._cache.put(INDEX_POSITIONS, b"{}", ttl_s=self._ttl_s)

    def apply(self, records: Sequence[Record]) -> None:
        """Records of `feedback.outcomes`, in log order."""
        for record in records:
            try:
                self.keep(Outcome.from_json(record.value))
            except Rejected as error:
                log.warning("unreadable", topic=record.topic, offset=record.offset, error=str(error))
            self._next[record.topic, record.partition] = record.offset + 1
        positions = {str(partition): offset for (_, partition), offset in self._next.items()}
        self._cache.put(INDEX_POSITIONS, json.dumps(positions).encode(), ttl_s=self._ttl_s)

    def keep(self, outcome: Outcome) -> None:
        """The first outcome of an event stands; that of a repetition says nothing about it. A dead letter can be
        replayed, so what became of it is believed as briefly as that something is pending, and gives way."""
        if outcome.outcome == OutcomeKind.DUPLICATE:
            return
        key, value = redis_keys.receipt(outcome.response_id, outcome.event_id), outcome.to_json()
        ttl_s = self._pending_ttl_s if outcome.outcome == OutcomeKind.DEAD else self._ttl_s
        before = self._cache.put_if_absent(key, value, ttl_s=ttl_s)
        if before is not None and before != value and (before == PENDING_MARK or _is_dead(before)):
            self._cache.put(key, value, ttl_s=ttl_s)

    def await_outcome(self, response_id: str, event_id: str) -> None:
        """Notes that the event is in the log; believed for `pending_ttl_s`, or until its outcome comes."""
        key = redis_keys.receipt(response_id, event_id)
        self._cache.put_if_absent(key, PENDING_MARK, ttl_s=self._pending_ttl_s)

    def find(self, response_id: str, event_id: str) -> Outcome | bool:
        """The outcome; True if the event is in the log without one; False if nothing is known here."""
        raw = self._cache.get(redis_keys.receipt(response_id, event_id))
        if raw is None or raw == PENDING_MARK:
            return raw is not None
        try:
            return Outcome.from_json(raw)
        except Rejected:
            return False


def _is_dead(kept: bytes) -> bool:
    try:
        return Outcome.from_json(kept).outcome == OutcomeKind.DEAD
    except Rejected:
        return False
