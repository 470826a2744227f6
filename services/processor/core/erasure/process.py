"""Carries erasures through one partition, a bounded piece in each call.

Requests wait until none is under way, then go on together. First the state is walked through once, some keys in each
call, and what it has of them is dropped. Then the step asks to see this partition's batches again, and rewrites each
that holds something of them. When that is through, each gets its report. In the state:

| key | value |
| --- | --- |
| `m/erasing` | `Course`; absent where there is nothing to do and nobody to keep out |
| `e/now/<number>`, `e/wait/<number>` | `Erasure`: under way, or waiting for the next course |
| `f/<subject>`, `g/<until>/<subject>` | `Fence`, and the time index by which it goes |
| `r/<number>/<n>` | the n-th batch that was rewritten for this request, and its rewrite's number |
| `w/<batch_id>` | how often this batch was rewritten: what an older copy in the log says is not taken up again |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from services.processor.core import join
from services.processor.core.erasure import rules
from services.processor.core.erasure.compaction import TOUCH_MS, touch, touch_later
from services.processor.core.erasure.rules import (
    FENCE_MS,
    IN_FLIGHT_MS,
    Course,
    Erasure,
    Fence,
    Sought,
    made_ms,
)
from services.processor.core.erasure.state_scan import Walk
from services.processor.core.join import Decided
from services.processor.core.state import Joined, after
from services.processor.core.wire import SERVICE
from shared.cloudevents import sealed
from shared.errors import Rejected
from shared.events import (
    Batch,
    ChatResponse,
    ErasureReport,
    ErasureRequest,
    Feedback,
    LogRecord,
    OutcomeKind,
    Retract,
    from_ms,
    to_ms,
)
from shared.records import Output, Record
from shared.stream.step import Reread, State, Through, Tick
from shared.topics import (
    CHAT_RESPONSES,
    ERASURE_REPORTS,
    ERASURE_REQUESTS,
    FEEDBACK_EVENTS,
    TRAINING_BATCHES,
    Topic,
)

if TYPE_CHECKING:
    from services.processor.core.step import Turn

KEYS_AT_ONCE: Final = 500
"""Keys of the state walked through in one call."""
KEYS_OF_A_TICK: Final = 5_000
"""As ticks come only once a second, and only where there is nothing else to do."""
EVERY: Final = 16
"""While records of the inputs come, every so manieth carries erasures on."""
TOGETHER: Final = 200
"""Requests in one course."""
ENDED_AT_ONCE: Final = 100
"""Fences taken away in one call."""
NAMED: Final = 8_000
"""Batches named in a report, the newest: their rewrites are in the log behind those of all others."""

COURSE, NOW, WAIT = b"m/erasing", b"e/now/", b"e/wait/"
_INPUTS = (CHAT_RESPONSES.name, FEEDBACK_EVENTS.name)


@dataclass(frozen=True, slots=True)
class Told:
    """What the step is told: P, for the reports, and how long after an erasure its topics are touched."""

    partitions: int = 1
    touch_ms: int = TOUCH_MS


class Erasing:
    """One call's part in the erasures of a partition: `take` what is about them, and `close` at the end."""

    __slots__ = ("_before", "asked", "course", "state", "told", "turn")

    def __init__(self, turn: Turn, told: Told, course: bytes | None) -> None:
        self.turn = turn
        self.state: State = turn.state
        self.told = told
        self.course = Course() if course is None else Course.from_json(course)
        self.asked: list[Reread] = []
        self._before = course

    def take(self, record: Record | Through) -> None:
        """A request, a batch that is seen again, or the word that this was the last."""
        if isinstance(record, Through):
            self.course.phase = "tell"
        elif record.topic == TRAINING_BATCHES.name:
            self.seen_again(record)
        elif record.topic == ERASURE_REQUESTS.name:
            self.request(ErasureRequest.from_json(record.value))
        else:
            raise Rejected(f"the processor has no rule for records of {record.topic}")

    def close(self, record: Record | Tick | Through) -> list[Output | Reread]:
        """Carries on what is under way, and writes what changed of the course. Returns all that goes out."""
        self.look()
        if isinstance(record, Tick):
            self.carry_on(KEYS_OF_A_TICK)
        elif isinstance(record, Through) or record.topic not in _INPUTS or record.offset % EVERY == 0:
            self.carry_on(KEYS_AT_ONCE)
        self._save()
        return [*self.turn.outputs, *self.asked]

    def _save(self) -> None:
        course = self.course
        if not (course.phase or course.waiting or course.fence_end_ms or course.touches):
            self.state.delete(COURSE)
        elif (value := course.to_json()) != self._before:
            self.state.put(COURSE, value)

    # --- what comes in ---

    def request(self, request: ErasureRequest) -> None:
        """A subject is to be erased. The same request again is under way, or was answered."""
        now_ms, place = self.turn.now_ms, _fence_key(request.subject)
        fence = self._fence(request.subject) or Fence()
        if now_ms < fence.until_ms and request.request_id in fence.requests:
            return
        if fence.until_ms:
            self.state.delete(_fence_end_key(fence.until_ms, request.subject))
        requested_ms = to_ms(request.requested_at)
        fence.add(request.request_id, requested_ms, now_ms + FENCE_MS)
        self.state.put(place, fence.to_json())
        self.state.put(_fence_end_key(fence.until_ms, request.subject), b"")
        self.course.fence_end_ms = min(self.course.fence_end_ms or fence.until_ms, fence.until_ms)
        cutoff_ms = min(now_ms, requested_ms + IN_FLIGHT_MS)
        self._wait(Erasure(request.request_id, request.line, request.subject, cutoff_ms))

    def retract_late(self, event: Retract, *, owed: bool) -> None:
        """Nothing is known any more of what is taken back: it is sought in the batches."""
        self._wait(
            Erasure(
                request_id=f"retract:{event.response_id}/{event.event_id}",
                line=event.line,
                subject=event.user_id,
                cutoff_ms=self.turn.now_ms,
                kind="retraction",
                response_id=event.response_id,
                event_id=event.value,
                retraction=event.event_id,
                owed=owed,
            )
        )

    def keeps_out(self, event: Feedback) -> bool:
        """Whether its user was erased, and it was made before that was asked for."""
        return self._fenced(event.user_id, made_ms(event))

    def keeps_out_response(self, key: bytes, response: ChatResponse) -> bool:
        """As `keeps_out`. What others said of the response goes too."""
        if response.user_id is None or not self._fenced(response.user_id, to_ms(response.created_at)):
            return False
        before = self.turn.find(key)
        if before is None or not (before.expired or before.answered):
            expires_at = None if before is None else join.expires_at(before)
            known = before or Joined(line=response.line, since_ms=self.turn.now_ms)
            change = rules.drop(known, set(), self.turn.now_ms)
            self.turn.decide(key, known, change.decided)
            self.turn.save(key, change.joined, expires_at)
        return True

    def seen_again(self, record: Record) -> None:
        """One of this partition's batches: it is rewritten where it holds something of the present course."""
        under_way = self._under_way()
        sought = _sought(each for _, each in under_way)
        if record.value is None or not sought.may_be_in(record.value):
            return
        batch = Batch.from_json(record.value)
        place = b"w/" + batch.batch_id.encode()
        rewrites = int(self.state.get(place) or 0)
        if batch.rewrite < rewrites:
            return  # the log still holds it, but what replaced it follows
        found = rules.rewritten(batch, sought, rewrites + 1)
        if found is None:
            return
        made = found.batch
        self.state.put(place, b"%d" % made.rewrite)
        self._send(
            TRAINING_BATCHES, made.batch_id, made, f"{made.batch_id}/{made.rewrite}", self.turn.partition
        )
        for number, each in under_way:
            if each.target in found.signals:
                self.state.put(
                    _rewritten_key(number, each.rewrites), f"{made.batch_id} {made.rewrite}".encode()
                )
                if each.rewrites >= NAMED:
                    self.state.delete(_rewritten_key(number, each.rewrites - NAMED))
                each.rewrites += 1
                each.signals += found.signals[each.target]
                self.state.put(NOW + number, each.to_json())
        self.course.touch_line = made.line

    # --- what carries it on ---

    def carry_on(self, keys: int) -> None:
        """The next piece of what is under way; where nothing is, the next course begins."""
        course = self.course
        if course.phase == "":
            self._begin()
        if course.phase == "walk":
            self._walk(keys)
        elif course.phase == "tell":
            self._tell()

    def look(self) -> None:
        """What is due by time: fences go, topics are touched."""
        course, now_ms = self.course, self.turn.now_ms
        if course.fence_end_ms and now_ms >= course.fence_end_ms:
            for place, _ in list(islice(self.state.scan(b"g/", _fence_end_key(now_ms, "")), ENDED_AT_ONCE)):
                self.state.delete(place)
                self.state.delete(_fence_key(place.split(b"/", 2)[2].decode()))
            first = next(self.state.scan(b"g/", after(b"g/")), None)
            course.fence_end_ms = 0 if first is None else int(first[0].split(b"/", 2)[1])
            touch_later(course, now_ms, self.told.touch_ms)
        if course.touches and now_ms >= course.touch_ms:
            touch(self.turn, course, self.told.touch_ms)

    def _begin(self) -> None:
        waiting = list(islice(self.state.scan(WAIT, after(WAIT)), TOGETHER))
        if not waiting:
            return
        self.course.waiting -= len(waiting)
        subjects = False
        for place, value in waiting:
            self.state.delete(place)
            self.state.put(NOW + _number(place), value)
            subjects = subjects or Erasure.from_json(value).kind == "erasure"
        self.course.cursor = ""
        if subjects:
            self.course.phase = "walk"
        else:  # an event was taken back: of that the state knows nothing
            self._reread()

    def _reread(self) -> None:
        self.course.phase = "reread"
        self.asked.append(Reread(TRAINING_BATCHES.name))

    def _walk(self, keys: int) -> None:
        """Some keys further; after the last the batches follow."""
        under_way = self._under_way()
        walk = Walk(self.turn, _sought(each for _, each in under_way).subjects)
        cursor = walk.go_on(self.course.cursor, keys)
        for number, each in under_way:
            if each.kind == "erasure" and each.subject in walk.dropped:
                responses, signals = walk.dropped[each.subject]
                each.responses += responses
                each.signals += signals
                self.state.put(NOW + number, each.to_json())
        self.course.cursor = cursor or ""
        if cursor is None:
            self._reread()

    # --- the end ---

    def _tell(self) -> None:
        """One report in each call; after the last the course is over."""
        number, told = next(iter(self._under_way(1)), (b"", None))
        if told is None:
            self.course.phase = ""
            touch_later(self.course, self.turn.now_ms, self.told.touch_ms)
            return
        named: dict[str, int] = {}
        for place, value in list(self.state.scan(_rewritten_key(number), after(_rewritten_key(number)))):
            batch_id, rewrite = value.decode().split(" ")
            named[batch_id] = int(rewrite)
            self.state.delete(place)
        self.state.delete(NOW + number)
        retraction = told.kind == "retraction"
        if retraction:
            self._settle(told)
        report = ErasureReport(
            line=told.line,
            request_id=told.request_id,
            kind="retraction" if retraction else "erasure",
            subject=told.subject,
            response_id=told.response_id or None,
            event_id=told.event_id or None,
            service=SERVICE,
            partition=self.turn.partition,
            partitions=1 if retraction else self.told.partitions,
            responses=told.responses,
            signals=told.signals,
            batches=named,
            completed_at=from_ms(self.turn.now_ms),
        )
        self._send(
            ERASURE_REPORTS, told.request_id, report, f"{told.request_id}/{SERVICE}/{self.turn.partition}"
        )

    def _settle(self, told: Erasure) -> None:
        """What became of a late retraction, unless that was decided otherwise meanwhile."""
        key = told.response_id.encode()
        joined = self.turn.find(key)
        place = join.taken_back(told.event_id, told.subject)
        if not told.owed:
            waits = joined is not None and joined.retractions.get(place) == told.retraction
            if joined is None or not waits or not told.rewrites:
                return
            del joined.retractions[place]
            self.turn.save(key, joined, join.expires_at(joined))
        if told.rewrites:
            decided = Decided(told.retraction, OutcomeKind.APPLIED_RETRACT, "taken out of its batches")
        else:
            detail = "the response's window is closed, and no batch holds the event"
            decided = Decided(told.retraction, OutcomeKind.LATE, detail)
        self.turn.decide(key, joined or Joined(line=told.line, since_ms=0), [decided])

    # --- small steps ---

    def _wait(self, what: Erasure) -> None:
        self.course.requests += 1
        self.course.waiting += 1
        self.state.put(WAIT + b"%012d" % self.course.requests, what.to_json())

    def _under_way(self, most: int = TOGETHER) -> list[tuple[bytes, Erasure]]:
        found = islice(self.state.scan(NOW, after(NOW)), most)
        return [(_number(place), Erasure.from_json(value)) for place, value in found]

    def _fence(self, subject: str) -> Fence | None:
        value = self.state.get(_fence_key(subject))
        return None if value is None else Fence.from_json(value)

    def _fenced(self, user_id: str, made: int) -> bool:
        fence = self._fence(user_id) if self.course.fence_end_ms else None
        return fence is not None and self.turn.now_ms < fence.until_ms and made < fence.requested_ms

    def _send(
        self, topic: Topic, key: str, record: LogRecord, ce_id: str, partition: int | None = None
    ) -> None:
        at = from_ms(self.turn.now_ms)
        made = sealed(topic, key, record, source=SERVICE, ce_id=ce_id, at=at, partition=partition)
        self.turn.outputs.append(made)


def _sought(erasures: Iterable[Erasure]) -> Sought:
    sought = Sought()
    for each in erasures:
        if each.kind == "erasure":
            sought.subjects[each.subject] = max(sought.subjects.get(each.subject, 0), each.cutoff_ms)
        else:
            sought.events[each.response_id, each.event_id] = each.subject
    return sought


def _number(place: bytes) -> bytes:
    return place.rsplit(b"/", 1)[1]


def _fence_key(subject: str) -> bytes:
    return b"f/" + subject.encode()


def _fence_end_key(until_ms: int, subject: str) -> bytes:
    return b"g/%016d/%s" % (until_ms, subject.encode())


def _rewritten_key(number: bytes, n: int | None = None) -> bytes:
    """Of all of a request, without `n`: the prefix."""
    return b"r/%s/" % number if n is None else b"r/%s/%08d" % (number, n)
