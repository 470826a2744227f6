"""What an erasure, or a retraction after the window, removes from one response and from one batch. Pure.

`process.py` applies these rules to a whole partition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import orjson

from services.processor.core.join import RESPONSE_ERASED, Change, retraction_owner, trace_of
from services.processor.core.state import JoinedResponse, StoredValue
from shared.events import Batch, ExampleRevision, Feedback, OutcomeKind, to_ms
from shared.topics import DAY_MS, WINDOW_DAYS

BLOCK_MS: Final = WINDOW_DAYS * DAY_MS
"""How long an erased user's earlier records are still erased when they arrive."""
IN_FLIGHT_MS: Final = 60_000
"""A request covers records that are in the log before it and were appended up to this long after it was made.

The time that the state holds is often the append time, which is later than the moment when the user acted.
"""
REMEMBERED_REQUESTS: Final = 32
"""Requests of one user that are remembered, so that a repetition of one is not answered twice."""
SEARCH_INTERVAL_MS: Final = 3_600_000
"""How long late retractions wait to be searched for together. Each search reads all batches of the partition."""

Target = str | tuple[str, str, str]
"""A user, or one event as (response_id, event_id, the user who retracts it)."""


class ErasedUser(StoredValue):
    """A user whose records made before `requested_ms` are erased on arrival, until `until_ms`."""

    requested_ms: int
    until_ms: int
    requests: tuple[str, ...] = ()
    """The newest requests to erase this user."""
    task: int | None = None
    """The number of the newest request's task."""

    def extended(self, request_id: str, requested_ms: int, until_ms: int) -> ErasedUser:
        """Return this user with a further request."""
        return ErasedUser(
            requested_ms=max(self.requested_ms, requested_ms),
            until_ms=max(self.until_ms, until_ms),
            requests=(*self.requests, request_id)[-REMEMBERED_REQUESTS:],
            task=self.task,
        )

    def covers(self, made_ms: int, now_ms: int) -> bool:
        """Return whether a record that this user made at `made_ms` is erased if it arrives at `now_ms`."""
        return now_ms < self.until_ms and made_ms < self.requested_ms


class ErasureTask(StoredValue):
    """One request in this partition: to erase a user, or to take one event out of batches after its window."""

    request_id: str
    line: str
    subject: str
    """The user to erase, or the author of the retraction."""
    cutoff_ms: int
    """For an erasure: the user's records with a time up to this are erased. For a retraction: when it was ordered, so
    that a window of its response that began later is left alone."""
    kind: Literal["erasure", "retraction"] = "erasure"
    response_id: str = ""
    event_id: str = ""
    """For a retraction: the event that is taken back."""
    retraction_id: str = ""
    """For a retraction: the event that takes it back."""
    outcome: OutcomeKind = OutcomeKind.LATE
    """For a retraction: its outcome if no batch holds the event."""
    responses: int = 0
    signals: int = 0
    rewrites: int = 0
    """Batches rewritten so far."""
    further: int = 0
    """Further requests that this task answers (`FurtherRequest`)."""

    @property
    def target(self) -> Target:
        """The user or event to erase, as `ErasureTargets` and `RewrittenBatch` name it."""
        return self.subject if self.kind == "erasure" else (self.response_id, self.event_id, self.subject)


class FurtherRequest(StoredValue):
    """Another request to erase the user of a task. Both are answered together, each by its own report."""

    request_id: str
    line: str


class ErasureProgress(StoredValue):
    """How far a partition is with its erasures, and when the next step is due."""

    requests: int
    """Tasks so far; numbers them. Never omitted, so that a value of another kind is not taken for this."""
    phase: Literal["", "scan", "reread", "report", "recover"] = ""
    """`scan` the state, `reread` batches, `report`; empty while no task is active.

    `recover` waits until no reread can be in progress, after a value of this kind could not be read.
    """
    resume_ms: int = 0
    """When the phase `recover` ends."""
    cursor: str = ""
    """The last key that the state scan has visited."""
    waiting: int = 0
    """Erasures that wait for the active tasks to end."""
    searches: int = 0
    """Late retractions that wait for the next search."""
    next_search_ms: int | None = None
    """When it begins, unless an erasure begins before; None if none waits or tasks are active."""
    next_unblock_ms: int | None = None
    """When the first `ErasedUser` is deleted; None if there is none."""
    fillers_left: int = 0
    """How often a filler must still be appended (`compaction.py`)."""
    filler_in_ms: int = 0
    """The time that must pass after `seen_ms` until the next one."""
    seen_ms: int | None = None
    """A recent time of the partition."""
    filler_line: str = ""
    """The line whose batches were rewritten, if any were."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do now or later."""
        due = self.phase or self.waiting or self.searches or self.fillers_left
        return not due and self.next_unblock_ms is None


def covers(cutoffs: Mapping[str, int], user_id: str | None, at_ms: int) -> bool:
    """Return whether an erasure covers what a user did at `at_ms`, given the cutoff of each erased user."""
    cutoff = cutoffs.get(user_id) if user_id is not None else None
    return cutoff is not None and at_ms <= cutoff


def made_ms(event: Feedback) -> int:
    """Return the latest time at which the user can have made a feedback event."""
    received = to_ms(event.received_at)
    return received if event.occurred_at is None else min(received, to_ms(event.occurred_at))


# --- one response -----------------------------------------------------------------------------------------------


def remove_users(joined: JoinedResponse, waiting: Iterable[str], cutoffs: Mapping[str, int]) -> Change:
    """Return the change that removes users' feedback on another user's response, up to each user's cutoff in ms."""
    change = Change(joined, set(waiting))
    for key, retraction in list(joined.retractions.items()):
        if retraction_owner(key) in cutoffs:
            del joined.retractions[key]
            if not joined.expired:
                change.decide(retraction, OutcomeKind.ERASED)
    erased = {e for e, seen in joined.events.items() if covers(cutoffs, seen.user_id, seen.at_ms)}
    for event_id in sorted(erased):
        change.drop_signal(event_id, OutcomeKind.ERASED)
        del joined.events[event_id]
    joined.slots = {slot: holder for slot, holder in joined.slots.items() if holder not in erased}
    return change.finish()


def erase_response(joined: JoinedResponse, waiting: Iterable[str], now_ms: int) -> Change:
    """Return the change that erases a response, with everyone's feedback on it.

    A trace remains, by which later feedback on the response is `erased` too.
    """
    trace = trace_of(joined)
    trace.erased = True
    if trace.responded_ms is None:
        trace.responded_ms = now_ms
    change = Change(trace, set())
    undecided = waiting if joined.answered else joined.signals.keys()
    for event_id in sorted({*undecided, *joined.retractions.values()}):
        change.decide(event_id, OutcomeKind.ERASED, RESPONSE_ERASED)
    return change


# --- one batch --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ErasureTargets:
    """What the active tasks remove.

    `cutoffs`: user -> the append time in ms up to which everything of that user is removed. `events`: (response_id,
    event_id) -> the users who retract it; only its own author does so with effect.
    """

    cutoffs: dict[str, int] = field(default_factory=dict)
    events: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, tasks: Iterable[ErasureTask]) -> ErasureTargets:
        """Return the targets of several tasks."""
        targets = cls()
        for task in tasks:
            if task.kind == "erasure":
                targets.cutoffs[task.subject] = max(
                    targets.cutoffs.get(task.subject, task.cutoff_ms), task.cutoff_ms
                )
            else:
                targets.events.setdefault((task.response_id, task.event_id), set()).add(task.subject)
        return targets

    def may_be_in(self, value: bytes) -> bool:
        """Return whether a batch must be parsed. Cheap. True for unreadable bytes, whose error parsing reports."""
        try:
            examples: list[dict[str, Any]] = orjson.loads(value)["examples"]
            return any(map(self._may_be_in_example, examples))
        except (ValueError, KeyError, TypeError, AttributeError):
            return True

    def _may_be_in_example(self, example: dict[str, Any]) -> bool:
        if example.get("user_id") in self.cutoffs:
            return True
        response_id = example["response_id"]
        return any(
            signal["user_id"] in self.cutoffs or (response_id, signal["event_id"]) in self.events
            for signal in example.get("signals", ())
        )


@dataclass(frozen=True, slots=True)
class RewrittenBatch:
    """A batch without the targets, and how many signals were removed for each of them."""

    batch: Batch
    removed: Counter[Target]


def rewrite_batch(batch: Batch, targets: ErasureTargets, rewrite: int) -> RewrittenBatch | None:
    """Return the batch without the targets, under its own id as its `rewrite`-th version; None if it holds none."""
    removed: Counter[Target] = Counter()
    examples = tuple(_without_targets(example, targets, removed) for example in batch.examples)
    if not removed:
        return None
    rewritten = batch.model_copy(
        update={
            "examples": examples,
            "rewrite": rewrite,
            "reason": "erasure",
            "content_hash": Batch.hash_of(examples),
        }
    )
    return RewrittenBatch(rewritten, removed)


def _without_targets(
    example: ExampleRevision, targets: ErasureTargets, removed: Counter[Target]
) -> ExampleRevision:
    asker = example.user_id
    if asker is not None and covers(targets.cutoffs, asker, to_ms(example.responded_at)):
        removed[asker] += len(example.signals)
        return _without_content(example)
    kept = []
    for signal in example.signals:
        event = (example.response_id, signal.event_id)
        if covers(targets.cutoffs, signal.user_id, to_ms(signal.occurred_at)):
            removed[signal.user_id] += 1
        elif signal.user_id in targets.events.get(event, ()):
            removed[*event, signal.user_id] += 1
        else:
            kept.append(signal)
    if len(kept) == len(example.signals):
        return example
    return example.model_copy(update={"signals": tuple(kept)}) if kept else _without_content(example)


def _without_content(example: ExampleRevision) -> ExampleRevision:
    """Return the same revision as a retraction, which names the response and its version and no user."""
    return ExampleRevision(
        line=example.line,
        response_id=example.response_id,
        revision=example.revision,
        op="retract",
        version=example.version,
        responded_at=example.responded_at,
        revised_at=example.revised_at,
    )
