"""Carries erasures through one partition, in bounded pieces. Pure.

Waiting tasks become active together, once no other is. Then, in order: scan the state, some keys per turn, and remove
what it holds of the users; reread this partition's batches and rewrite each that holds a target; report each task.

Keys in the state:

| key | value |
| --- | --- |
| `m/erasing` | `ErasureProgress`; absent if idle |
| `e/now/<number>`, `e/wait/<number>` | `ErasureTask`: active, or waiting |
| `f/<user>`, `g/<until>/<user>` | `ErasedUser`, and the time index by which it is deleted |
| `r/<number>/<n>` | the n-th batch that was rewritten for this task, and its rewrite's number |
| `w/<batch_id>` | the number of the batch's newest rewrite, so that older copies in the log are ignored |
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Final

from services.processor.core.erasure import rules
from services.processor.core.erasure.compaction import (
    FILLER_INTERVAL_MS,
    append_filler_if_due,
    schedule_fillers,
)
from services.processor.core.erasure.rules import (
    BLOCK_MS,
    IN_FLIGHT_MS,
    ErasedUser,
    ErasureProgress,
    ErasureTargets,
    ErasureTask,
    made_ms,
)
from services.processor.core.erasure.state_scan import StateScan
from services.processor.core.join import EventOutcome, retraction_key
from services.processor.core.state import JoinedResponse, prefix_end
from services.processor.core.turn import PartitionTurn
from services.processor.core.wire import SERVICE
from shared.composed_ids import digest_id, shortened_id
from shared.errors import Rejected
from shared.events import (
    Batch,
    ChatResponse,
    ErasureReport,
    ErasureRequest,
    Feedback,
    OutcomeKind,
    Retract,
    from_ms,
    to_ms,
)
from shared.records import Record
from shared.stream.step import RereadComplete, Tick
from shared.topics import (
    CHAT_RESPONSES,
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    FEEDBACK_EVENTS,
    TRAINING_BATCHES,
)

KEYS_PER_PIECE: Final = 500
"""Keys of the state visited in one turn."""
KEYS_PER_TICK: Final = 5_000
"""Keys visited in a tick: ticks come once a second, and only while the partition has nothing else to do."""
RECORDS_PER_PIECE: Final = 16
"""While input records come, one in this many advances the erasures."""
TASKS_AT_ONCE: Final = 200
"""Tasks that may be active together."""
UNBLOCKED_AT_ONCE: Final = 100
"""`ErasedUser`s deleted in one turn."""
BATCHES_IN_REPORT: Final = 8_000
"""Batches named in one report, the newest: their rewrites are in the log after those of all others."""

RETRACTION: Final = "retract:"
"""Prefix of the request ids under which late retractions are reported."""
PROGRESS_KEY: Final = b"m/erasing"
_ACTIVE, _WAITING = b"e/now/", b"e/wait/"
_INPUTS = (CHAT_RESPONSES.name, FEEDBACK_EVENTS.name)


@dataclass(frozen=True, slots=True)
class ErasureConfig:
    """Deployment facts that erasures need.

    `partitions`: the number of input partitions, which reports name. `filler_interval_ms`: how far apart the records
    are that make the broker compact its segments.
    """

    partitions: int = 1
    filler_interval_ms: int = FILLER_INTERVAL_MS


class ErasureProcess:
    """The erasures of a partition, for one turn: `take` their records, `advance` at the end of every turn."""

    __slots__ = ("_config", "_progress", "_store", "_stored", "_turn")

    def __init__(self, turn: PartitionTurn, config: ErasureConfig) -> None:
        self._turn = turn
        self._store = turn.state.store
        self._config = config
        self._stored = self._store.get(PROGRESS_KEY)
        self._progress = (
            ErasureProgress() if self._stored is None else ErasureProgress.from_json(self._stored)
        )

    def take(self, record: Record | RereadComplete) -> None:
        """Take in an erasure request, a batch that is reread, or the end of a reread."""
        if isinstance(record, RereadComplete):
            self._progress.phase = "report"
        elif record.topic == TRAINING_BATCHES.name:
            self._rewrite(record)
        elif record.topic == ERASURE_REQUESTS.name:
            self._request(ErasureRequest.from_json(record.value))
        else:
            raise Rejected(f"the processor has no rule for records of {record.topic}")

    def advance(self, record: Record | Tick | RereadComplete) -> None:
        """Do the next bounded piece of work and store the progress."""
        if self._stored is None and self._progress.idle:
            return
        self._unblock_users()
        append_filler_if_due(self._turn, self._progress, self._config.filler_interval_ms)
        if isinstance(record, Tick):
            self._work(KEYS_PER_TICK)
        elif (
            isinstance(record, RereadComplete)
            or record.topic not in _INPUTS
            or record.offset % RECORDS_PER_PIECE == 0
        ):
            self._work(KEYS_PER_PIECE)
        if self._progress.idle:
            self._store.delete(PROGRESS_KEY)
        elif (value := self._progress.to_json()) != self._stored:
            self._store.put(PROGRESS_KEY, value)

    # --- records ---

    def covers(self, event: Feedback) -> bool:
        """Return whether an erasure request that came earlier in the log covers this event."""
        return self._blocked(event.user_id, made_ms(event))

    def covers_response(self, response: ChatResponse) -> bool:
        """Return whether an erasure request that came earlier in the log covers this response."""
        return response.user_id is not None and self._blocked(response.user_id, to_ms(response.created_at))

    def erase_response(self, key: bytes, response: ChatResponse) -> None:
        """Erase a response on arrival, with everyone's feedback that waited for it."""
        turn = self._turn
        joined = turn.load(key) or JoinedResponse(line=response.line, since_ms=turn.now_ms)
        if joined.expired or joined.answered:
            return
        change = rules.erase_response(joined, (), turn.now_ms)
        turn.outbox.outcomes(key, joined, change.outcomes)
        turn.state.put_joined(key, change.joined)

    def search_batches(self, event: Retract, *, outcome_due: bool) -> None:
        """Search the batches for a retracted event that the state no longer knows."""
        self._add(
            ErasureTask(
                request_id=digest_id(RETRACTION, event.response_id, event.event_id),
                line=event.line,
                subject=event.user_id,
                cutoff_ms=self._turn.now_ms,
                kind="retraction",
                response_id=event.response_id,
                event_id=event.value,
                retraction_id=event.event_id,
                outcome_due=outcome_due,
            )
        )

    def _request(self, request: ErasureRequest) -> None:
        """Block the user's earlier records and add a task, unless the request is a repetition."""
        now_ms = self._turn.now_ms
        requested_ms = to_ms(request.requested_at)
        known = self._erased_user(request.subject)
        if known is None:
            user = ErasedUser(requested_ms, now_ms + BLOCK_MS, (request.request_id,))
        elif now_ms < known.until_ms and request.request_id in known.requests:
            return
        else:
            self._store.delete(_unblock_key(known.until_ms, request.subject))
            user = known.extended(request.request_id, requested_ms, now_ms + BLOCK_MS)
        self._store.put(_user_key(request.subject), user.to_json())
        self._store.put(_unblock_key(user.until_ms, request.subject), b"")
        first = self._progress.next_unblock_ms
        self._progress.next_unblock_ms = user.until_ms if first is None else min(first, user.until_ms)
        cutoff_ms = min(now_ms, requested_ms + IN_FLIGHT_MS)
        self._add(ErasureTask(request.request_id, request.line, request.subject, cutoff_ms))

    def _rewrite(self, record: Record) -> None:
        """Rewrite one of this partition's batches if it holds a target of the active tasks."""
        active = self._active_tasks()
        targets = ErasureTargets.of(task for _, task in active)
        if record.value is None or not targets.may_be_in(record.value):
            return
        batch = Batch.from_json(record.value)
        place = b"w/" + batch.batch_id.encode()
        rewrites = int(self._store.get(place) or 0)
        if batch.rewrite < rewrites:
            return  # an older copy, which the log still holds: its newest rewrite follows
        result = rules.rewrite_batch(batch, targets, rewrites + 1)
        if result is None:
            return
        new = result.batch
        self._store.put(place, b"%d" % new.rewrite)
        self._turn.outbox.send(
            TRAINING_BATCHES,
            new.batch_id,
            new,
            f"{new.batch_id}/{new.rewrite}",
            self._turn.outbox.partition,
        )
        for number, task in active:
            if task.target in result.removed:
                self._store.put(
                    _rewritten_key(number, task.rewrites), f"{new.batch_id} {new.rewrite}".encode()
                )
                if task.rewrites >= BATCHES_IN_REPORT:
                    self._store.delete(_rewritten_key(number, task.rewrites - BATCHES_IN_REPORT))
                task.rewrites += 1
                task.signals += result.removed[task.target]
                self._store.put(_ACTIVE + number, task.to_json())
        self._progress.filler_line = new.line

    # --- pieces of work ---

    def _work(self, keys: int) -> None:
        """Do the next piece of the active tasks; if there are none, activate the waiting ones."""
        if self._progress.phase == "":
            self._activate()
        if self._progress.phase == "scan":
            self._scan(keys)
        elif self._progress.phase == "report":
            self._report()

    def _activate(self) -> None:
        waiting = list(islice(self._store.scan(_WAITING, prefix_end(_WAITING)), TASKS_AT_ONCE))
        if not waiting:
            return
        self._progress.waiting -= len(waiting)
        any_user = False
        for place, value in waiting:
            self._store.delete(place)
            self._store.put(_ACTIVE + _number(place), value)
            any_user = any_user or ErasureTask.from_json(value).kind == "erasure"
        self._progress.cursor = ""
        if any_user:
            self._progress.phase = "scan"
        else:  # the state knows nothing of events that are taken back after their window
            self._reread()

    def _scan(self, keys: int) -> None:
        active = self._active_tasks()
        scan = StateScan(self._turn, ErasureTargets.of(task for _, task in active).cutoffs)
        cursor = scan.advance(self._progress.cursor, keys)
        for number, task in active:
            if task.kind == "erasure" and task.subject in scan.removed:
                responses, signals = scan.removed[task.subject]
                task.responses += responses
                task.signals += signals
                self._store.put(_ACTIVE + number, task.to_json())
        self._progress.cursor = cursor or ""
        if cursor is None:
            self._reread()

    def _reread(self) -> None:
        self._progress.phase = "reread"
        self._turn.outbox.reread(TRAINING_BATCHES)

    def _report(self) -> None:
        """Report one task. After the last, wait for new ones and plan the fillers."""
        number, task = next(iter(self._active_tasks(1)), (b"", None))
        if task is None:
            self._progress.phase = ""
            schedule_fillers(self._progress, self._turn.now_ms, self._config.filler_interval_ms)
            return
        batches: dict[str, int] = {}
        prefix = _rewritten_key(number)
        for place, value in list(self._store.scan(prefix, prefix_end(prefix))):
            batch_id, rewrite = value.decode().split(" ")
            batches[batch_id] = int(rewrite)
            self._store.delete(place)
        self._store.delete(_ACTIVE + number)
        retraction = task.kind == "retraction"
        if retraction:
            self._settle(task)
        partition = self._turn.outbox.partition
        report = ErasureReport(
            line=task.line,
            request_id=shortened_id(task.request_id),
            kind="retraction" if retraction else "erasure",
            subject=task.subject,
            response_id=task.response_id or None,
            event_id=task.event_id or None,
            service=SERVICE,
            partition=partition,
            partitions=1 if retraction else self._config.partitions,
            responses=task.responses,
            signals=task.signals,
            batches=batches,
            completed_at=from_ms(self._turn.now_ms),
        )
        ce_id = f"{report.request_id}/{SERVICE}/{partition}"
        self._turn.outbox.send(ERASURE_REPORTS, report.request_id, report, ce_id)

    def _settle(self, task: ErasureTask) -> None:
        """Give a late retraction its outcome, unless it got one in the meantime."""
        key = task.response_id.encode()
        joined = self._turn.load(key)
        if not task.outcome_due:
            waits_as = retraction_key(task.event_id, task.subject)
            waits = joined is not None and joined.retractions.get(waits_as) == task.retraction_id
            if joined is None or not waits or not task.rewrites:
                return
            del joined.retractions[waits_as]
            self._turn.state.put_joined(key, joined)
        if task.rewrites:
            outcome = EventOutcome(
                task.retraction_id, OutcomeKind.APPLIED_RETRACT, "taken out of its batches"
            )
        else:
            detail = "the response's window is closed, and no batch holds the event"
            outcome = EventOutcome(task.retraction_id, OutcomeKind.LATE, detail)
        self._turn.outbox.outcomes(key, joined or JoinedResponse(line=task.line, since_ms=0), [outcome])

    # --- tasks and erased users ---

    def _add(self, task: ErasureTask) -> None:
        self._progress.requests += 1
        self._progress.waiting += 1
        self._store.put(_WAITING + b"%012d" % self._progress.requests, task.to_json())

    def _active_tasks(self, at_most: int = TASKS_AT_ONCE) -> list[tuple[bytes, ErasureTask]]:
        found = islice(self._store.scan(_ACTIVE, prefix_end(_ACTIVE)), at_most)
        return [(_number(place), ErasureTask.from_json(value)) for place, value in found]

    def _erased_user(self, user_id: str) -> ErasedUser | None:
        value = self._store.get(_user_key(user_id))
        return None if value is None else ErasedUser.from_json(value)

    def _blocked(self, user_id: str, made: int) -> bool:
        """Return whether what a user made at `made` ms must be erased on arrival."""
        user = self._erased_user(user_id) if self._progress.next_unblock_ms is not None else None
        return user is not None and user.covers(made, self._turn.now_ms)

    def _unblock_users(self) -> None:
        """Delete the `ErasedUser`s whose time is over. Their keys name the user, so they must leave the disk too."""
        progress, now_ms = self._progress, self._turn.now_ms
        if progress.next_unblock_ms is None or now_ms < progress.next_unblock_ms:
            return
        over = islice(self._store.scan(b"g/", _unblock_key(now_ms, "")), UNBLOCKED_AT_ONCE)
        for place, _ in list(over):
            self._store.delete(place)
            self._store.delete(_user_key(place.split(b"/", 2)[2].decode()))
        first = next(self._store.scan(b"g/", prefix_end(b"g/")), None)
        progress.next_unblock_ms = None if first is None else int(first[0].split(b"/", 2)[1])
        schedule_fillers(progress, now_ms, self._config.filler_interval_ms)


def _number(place: bytes) -> bytes:
    return place.rsplit(b"/", 1)[1]


def _user_key(user_id: str) -> bytes:
    return b"f/" + user_id.encode()


def _unblock_key(until_ms: int, user_id: str) -> bytes:
    return b"g/%016d/%s" % (until_ms, user_id.encode())


def _rewritten_key(number: bytes, n: int | None = None) -> bytes:
    """Return the key of a task's n-th rewritten batch; without `n`, the prefix of all of them."""
    return b"r/%s/" % number if n is None else b"r/%s/%08d" % (number, n)
