"""Carries erasures through one partition, in bounded pieces. Pure.

Waiting tasks (`tasks.py`) become active together, once no other is. Then, in order: scan the state, some keys per turn,
and remove what it holds of the users; reread this partition's batches and rewrite each that holds a target; report each
task.

A late retraction is of an event that the state does not know, but that a batch may hold. It waits for the next search,
so that retractions alone make a partition reread its batches at most once per `search_interval_ms`, or joins an
erasure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from services.processor.core.erasure import rules
from services.processor.core.erasure.compaction import (
    FILLER_INTERVAL_MS,
    append_filler_if_due,
    pass_time,
    schedule_fillers,
)
from services.processor.core.erasure.rules import (
    BLOCK_MS,
    IN_FLIGHT_MS,
    SEARCH_INTERVAL_MS,
    ErasedUser,
    ErasureTask,
    FurtherRequest,
    made_ms,
)
from services.processor.core.erasure.state_scan import StateScan
from services.processor.core.erasure.tasks import MAX_SEARCHES_OF_USER, RECOVERY_MS, ErasureTasks
from services.processor.core.join import ALREADY_RETRACTED, BatchSearch, EventOutcome, retraction_key
from services.processor.core.state import JoinedResponse
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
    RefusalReason,
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
KEYS_PER_TICK: Final = 2_000
"""Keys visited in a tick: ticks come once a second, and only while the partition has nothing else to do."""
RECORDS_PER_PIECE: Final = 16
"""While input records come, one in this many advances the erasures."""
UNBLOCKED_AT_ONCE: Final = 100
"""`ErasedUser`s deleted in one turn."""
REPORTS_AT_ONCE: Final = 100
"""Reports written in one turn."""
REPORT_COST: Final = 10_000
"""Batches that the reports of one turn may name; the last one may exceed it."""
RETRACTION: Final = "retract:"
"""Prefix of the request ids under which late retractions are reported."""
_INPUTS = (CHAT_RESPONSES.name, FEEDBACK_EVENTS.name)
_TOO_MANY = (
    f"too many late retractions are waiting to be searched for in the batches (at most {MAX_SEARCHES_OF_USER} of one "
    "user): send it again under a new event_id in a few hours"
)


@dataclass(frozen=True, slots=True)
class ErasureConfig:
    """Deployment facts that erasures need.

    `partitions`: the number of input partitions, which reports name. `filler_interval_ms`: how far apart the records
    are that make the broker compact its segments. `search_interval_ms`: how long late retractions wait for each other.
    """

    partitions: int = 1
    filler_interval_ms: int = FILLER_INTERVAL_MS
    search_interval_ms: int = SEARCH_INTERVAL_MS


class ErasureProcess:
    """The erasures of a partition, for one turn: `take` their records, `advance` at the end of every turn."""

    __slots__ = ("_config", "_progress", "_tasks", "_turn")

    def __init__(self, turn: PartitionTurn, config: ErasureConfig) -> None:
        self._turn = turn
        self._config = config
        self._tasks = ErasureTasks(turn.state.store, turn.now_ms)
        self._progress = self._tasks.progress
        if self._tasks.recovered:
            schedule_fillers(self._progress, config.filler_interval_ms)

    def take(self, record: Record | RereadComplete) -> None:
        """Take in an erasure request, a batch that is reread, or the end of a reread."""
        if isinstance(record, RereadComplete):
            if self._progress.phase == "reread":
                self._progress.phase = "report"
            elif self._progress.phase == "recover":
                self._progress.resume_ms = self._turn.now_ms
        elif record.topic == TRAINING_BATCHES.name:
            if self._progress.phase == "recover":
                self._progress.resume_ms = self._turn.now_ms + RECOVERY_MS
            else:
                self._rewrite(record)
        elif record.topic == ERASURE_REQUESTS.name:
            self._request(ErasureRequest.from_json(record.value))
        else:
            raise Rejected(f"the processor has no rule for records of {record.topic}")

    def advance(self, record: Record | Tick | RereadComplete) -> None:
        """Do the next bounded piece of work and store the progress."""
        self._add_searches()
        if self._tasks.idle:
            return
        self._unblock_users()
        if isinstance(record, Tick) or self._turn.is_input:
            pass_time(self._progress, self._turn.now_ms, self._config.filler_interval_ms)
        append_filler_if_due(self._turn, self._progress, self._config.filler_interval_ms)
        if isinstance(record, Tick):
            self._work(KEYS_PER_TICK)
        elif (
            isinstance(record, RereadComplete)
            or record.topic not in _INPUTS
            or record.offset % RECORDS_PER_PIECE == 0
        ):
            self._work(KEYS_PER_PIECE)
        self._add_searches()  # for windows that this work closed
        self._tasks.save()

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

    def _blocked(self, user_id: str, made: int) -> bool:
        """Return whether what a user made at `made` ms must be erased on arrival."""
        user = self._tasks.erased_user(user_id)
        return user is not None and user.covers(made, self._turn.stream_ms)

    def _request(self, request: ErasureRequest) -> None:
        """Block the user's earlier records and add a task, unless the request is a repetition."""
        now_ms, requested_ms = self._turn.now_ms, to_ms(request.requested_at)
        until_ms = max(now_ms, self._turn.stream_ms) + BLOCK_MS
        known = self._tasks.erased_user(request.subject)
        if known is None:
            user = ErasedUser(requested_ms, until_ms, (request.request_id,))
        elif request.request_id in known.requests:
            return
        else:
            user = known.extended(request.request_id, requested_ms, until_ms)
        cutoff_ms = min(now_ms, requested_ms + IN_FLIGHT_MS)
        task = ErasureTask(request.request_id, request.line, request.subject, cutoff_ms)
        user.task = self._tasks.add_erasure(task, user.task)
        self._tasks.put_erased_user(request.subject, user, known)
        for search in self._tasks.take_searches_of(request.subject):
            self._decide(search, EventOutcome(search.retraction_id, OutcomeKind.ERASED))

    def _rewrite(self, record: Record) -> None:
        """Rewrite one of this partition's batches if it holds a target of the active tasks."""
        targets = self._tasks.targets()
        if record.value is None or not targets.may_be_in(record.value):
            return
        batch = Batch.from_json(record.value)
        rewrites = self._tasks.rewrites(batch.batch_id)
        if batch.rewrite < rewrites:
            return  # an older copy, which the log still holds: its newest rewrite follows
        result = rules.rewrite_batch(batch, targets, max(batch.rewrite, rewrites) + 1)
        if result is None:
            return
        new = result.batch
        self._tasks.put_rewrite(new.batch_id, new.rewrite)
        self._turn.outbox.send(
            TRAINING_BATCHES,
            new.batch_id,
            new,
            f"{new.batch_id}/{new.rewrite}",
            self._turn.outbox.partition,
        )
        for number, task in self._tasks.active():
            if task.target in result.removed:
                self._tasks.add_rewritten(number, task, new.batch_id, new.rewrite)
                task.signals += result.removed[task.target]
                self._tasks.put(number, task)
        self._progress.filler_line = new.line

    # --- late retractions ---

    def _add_searches(self) -> None:
        """Let the late retractions of this turn wait for the next search."""
        searches, self._turn.searches = self._turn.searches, []
        for key, line, search in searches:
            self._add_search(key, line, search)

    def _add_search(self, key: bytes, line: str, search: BatchSearch) -> None:
        response_id, now_ms = key.decode(), self._turn.now_ms
        joined = self._turn.state.joined(key)
        task = ErasureTask(
            request_id=digest_id(RETRACTION, response_id, search.retraction_id),
            line=line,
            subject=search.user_id,
            cutoff_ms=now_ms,
            kind="retraction",
            response_id=response_id,
            event_id=search.event_id,
            retraction_id=search.retraction_id,
            outcome=search.outcome,
        )
        if self._tasks.is_searched(task):
            self._decide(task, EventOutcome(task.retraction_id, OutcomeKind.DUPLICATE, ALREADY_RETRACTED))
        elif self._tasks.may_add_search(search.user_id):
            self._tasks.add_search(task, now_ms + self._config.search_interval_ms)
        else:
            refusal = EventOutcome(task.retraction_id, OutcomeKind.REFUSED, _TOO_MANY, RefusalReason.TOO_MANY)
            self._decide(task, refusal)
            if joined is not None and joined.retractions.pop(_waits_as(task), None) is not None:
                self._turn.state.put_joined(key, joined)  # so that the user may try again

    def _settle(self, task: ErasureTask) -> None:
        """Give a late retraction its outcome.

        An earlier release searched while a retraction still waited in the open window of an unknown response. If
        nothing was found for such a one, it gets its outcome there. A window that began after the search was ordered
        holds the same retraction once more, and that one has an outcome of its own.
        """
        key = task.response_id.encode()
        joined = self._turn.load(key)
        if (
            joined is not None
            and not joined.expired
            and task.outcome is not OutcomeKind.UNMATCHED
            and joined.since_ms <= task.cutoff_ms
            and joined.retractions.get(_waits_as(task)) == task.retraction_id
        ):
            if not task.rewrites:
                return
            del joined.retractions[_waits_as(task)]
            self._turn.state.put_joined(key, joined)
        if task.rewrites:
            kind, detail = OutcomeKind.APPLIED_RETRACT, "taken out of its batches"
        else:
            kind, detail = task.outcome, "the response's window is closed, and no batch holds the event"
        self._decide(task, EventOutcome(task.retraction_id, kind, detail))

    def _decide(self, task: ErasureTask, outcome: EventOutcome) -> None:
        joined = JoinedResponse(line=task.line, since_ms=self._turn.now_ms)
        self._turn.outbox.outcomes(task.response_id.encode(), joined, [outcome])

    # --- pieces of work ---

    def _work(self, keys: int) -> None:
        """Do the next piece of the active tasks; if there are none, activate the waiting ones."""
        if self._progress.phase == "":
            self._activate()
        elif self._progress.phase == "recover" and self._turn.now_ms >= self._progress.resume_ms:
            self._begin([task for _, task in self._tasks.active()])
        if self._progress.phase == "scan":
            self._scan(keys)
        elif self._progress.phase == "report":
            self._report()

    def _activate(self) -> None:
        active = self._tasks.activate(self._turn.now_ms)
        if active:
            self._begin(active)

    def _begin(self, active: Sequence[ErasureTask]) -> None:
        self._progress.cursor = ""
        if any(task.kind == "erasure" for task in active):
            self._progress.phase = "scan"
        elif active:  # the state knows nothing of events that are taken back after their window
            self._reread()
        else:
            self._end()

    def _scan(self, keys: int) -> None:
        active = self._tasks.active()
        scan = StateScan(self._turn, self._tasks.targets().cutoffs)
        cursor = scan.advance(self._progress.cursor, keys)
        for number, task in active:
            if task.kind == "erasure" and task.subject in scan.removed:
                responses, signals = scan.removed[task.subject]
                task.responses += responses
                task.signals += signals
                self._tasks.put(number, task)
        self._progress.cursor = cursor or ""
        if cursor is None:
            self._reread()

    def _reread(self) -> None:
        self._progress.phase = "reread"
        self._turn.outbox.reread(TRAINING_BATCHES)

    def _end(self) -> None:
        """Wait for new tasks."""
        self._progress.phase = ""
        self._tasks.plan_search(self._turn.now_ms + self._config.search_interval_ms)

    def _report(self) -> None:
        """Report some tasks. After the last, plan the fillers."""
        budget = REPORT_COST
        for number, task in self._tasks.active():
            batches = self._tasks.rewritten(number)
            cost = len(batches) + REPORT_COST // REPORTS_AT_ONCE
            at_most = max(1, budget // cost)
            further = self._tasks.take_further(number, at_most)
            for request in further:
                if request is not None:
                    self._send_report(request, task, batches)
            if len(further) == at_most:
                return
            budget -= cost * len(further)
            if task.kind == "retraction":
                self._settle(task)
            if (
                task.kind == "erasure" or batches
            ):  # a retraction without effect has an outcome, and needs no report
                self._send_report(FurtherRequest(task.request_id, task.line), task, batches)
            self._tasks.delete(number)
            budget -= cost
            if budget <= 0:
                return
        self._end()
        schedule_fillers(self._progress, self._config.filler_interval_ms)

    def _send_report(self, request: FurtherRequest, task: ErasureTask, batches: dict[str, int]) -> None:
        partition = self._turn.outbox.partition
        retraction = task.kind == "retraction"
        try:
            report = ErasureReport(
                line=request.line,
                request_id=shortened_id(request.request_id),
                kind=task.kind,
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
        except ValidationError:
            return  # stored values that no request can have: nobody can ask for this report
        ce_id = f"{report.request_id}/{SERVICE}/{partition}"
        self._turn.outbox.send(ERASURE_REPORTS, report.request_id, report, ce_id)

    def _unblock_users(self) -> None:
        """Delete the `ErasedUser`s whose time is over. Their keys name the user, so they must leave the disk too."""
        # By stream time: unblocking too late harms nobody, and a wrong clock must not unblock too early.
        if self._tasks.unblock(self._turn.stream_ms, UNBLOCKED_AT_ONCE):
            schedule_fillers(self._progress, self._config.filler_interval_ms)


def _waits_as(task: ErasureTask) -> str:
    return retraction_key(task.event_id, task.subject)
