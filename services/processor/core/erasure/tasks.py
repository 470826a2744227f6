"""The tasks of one partition's erasures, and the users whose earlier records are erased on arrival. Pure.

| key | value |
| --- | --- |
| `m/erasing` | `ErasureProgress`; absent if idle |
| `e/now/<number>` | `ErasureTask`: active |
| `e/wait/<number>` | `ErasureTask`: an erasure that waits |
| `e/find/<number> <name>` | `ErasureTask`: a late retraction that waits |
| `e/by/<name>` | the number of that task; `<name>` is `<user> <response_id> <event_id>` |
| `q/<number>/<n>` | `FurtherRequest`: another request to erase the user of a task |
| `r/<number>/<n>` | the n-th batch that was rewritten for a task, and its rewrite's number |
| `w/<batch_id>` | the number of the batch's newest rewrite, so that older copies in the log are ignored |
| `f/<user>`, `g/<until>/<user>` | `ErasedUser`, and the time index by which it is deleted |

A value that cannot be read is deleted, so it stops nothing. If it was an erasure, its status at the API stays open and
becomes `overdue`.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import Final

from services.processor.core.erasure.rules import (
    ErasedUser,
    ErasureProgress,
    ErasureTargets,
    ErasureTask,
    FurtherRequest,
)
from services.processor.core.state import prefix_end
from shared.stream.step import State

TASKS_AT_ONCE: Final = 200
"""Tasks that may be active together."""
MAX_SEARCHES: Final = 5_000
"""Late retractions that may wait in a partition."""
MAX_SEARCHES_OF_USER: Final = 100
"""The same of one user."""
RECOVERY_MS: Final = 3_600_000
"""How long to wait for the records of a reread that may be in progress, if the progress cannot be read."""
BATCHES_IN_REPORT: Final = 6_000
"""Batches named in one report, the newest: their rewrites are in the log after those of all others."""

PROGRESS_KEY: Final = b"m/erasing"
_ACTIVE, _WAITING, _SEARCHES, _BY_USER = b"e/now/", b"e/wait/", b"e/find/", b"e/by/"
_UNBLOCK = b"g/"


class ErasureTasks:
    """Typed reads and writes of the keys above. Valid for one turn. `number` identifies a task."""

    __slots__ = ("_store", "_stored", "progress", "recovered")

    def __init__(self, store: State, now_ms: int) -> None:
        """Read the progress. If it cannot be read, it is counted again, and the active tasks start over."""
        self._store = store
        self._stored = store.get(PROGRESS_KEY)
        self.progress = ErasureProgress(requests=0)
        self.recovered = False
        """Whether the progress could not be read."""
        if self._stored is not None:
            progress = ErasureProgress.read(self._stored)
            self.recovered = progress is None
            self.progress = self._counted(now_ms) if progress is None else progress

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do now or later, and nothing was stored about it."""
        return self._stored is None and self.progress.idle

    def save(self) -> None:
        """Store the progress."""
        if self.progress.idle:
            self._store.delete(PROGRESS_KEY)
        elif (value := self.progress.to_json()) != self._stored:
            self._store.put(PROGRESS_KEY, value)

    def _counted(self, now_ms: int) -> ErasureProgress:
        active, waiting, searches = self._count(_ACTIVE), self._count(_WAITING), self._count(_SEARCHES)
        return ErasureProgress(
            phase="recover",
            resume_ms=now_ms + RECOVERY_MS,
            requests=max(active[1], waiting[1], searches[1]),
            waiting=waiting[0],
            searches=searches[0],
            next_search_ms=now_ms,
            next_unblock_ms=self._first_unblock_ms(),
        )

    def _count(self, prefix: bytes) -> tuple[int, int]:
        """Return how many keys there are, and the highest number among them."""
        count = highest = 0
        for place, _ in self._store.scan(prefix, prefix_end(prefix)):
            count += 1
            number = place.removeprefix(prefix).split(b" ", 1)[0]
            highest = max(highest, int(number) if number.isdigit() else 0)
        return count, highest

    # --- erasures ---

    def add_erasure(self, task: ErasureTask, waiting: int | None) -> int:
        """Add a request to erase a user. Return the number of its task.

        Requests for one user share a task until it becomes active: `waiting` is the number of the newest one's.
        """
        known = self._waiting(waiting) if waiting is not None else None
        if known is None or waiting is None or known.subject != task.subject:
            self.progress.requests += 1
            self.progress.waiting += 1
            self._store.put(_WAITING + _digits(self.progress.requests), task.to_json())
            return self.progress.requests
        known.cutoff_ms = max(known.cutoff_ms, task.cutoff_ms)
        known.further += 1
        request = FurtherRequest(task.request_id, task.line)
        self._store.put(_further_key(_digits(waiting)) + _digits(known.further), request.to_json())
        self._store.put(_WAITING + _digits(waiting), known.to_json())
        return waiting

    def _waiting(self, number: int) -> ErasureTask | None:
        value = self._store.get(_WAITING + _digits(number))
        return None if value is None else ErasureTask.read(value)

    # --- late retractions ---

    def is_searched(self, task: ErasureTask) -> bool:
        """Return whether the same user's retraction of the same event waits already."""
        return self._store.get(_BY_USER + _search_name(task)) is not None

    def may_add_search(self, user_id: str) -> bool:
        """Return whether a further late retraction of this user may wait."""
        return (
            self.progress.searches < MAX_SEARCHES and len(self._searches_of(user_id)) < MAX_SEARCHES_OF_USER
        )

    def add_search(self, task: ErasureTask, search_ms: int) -> None:
        """Let a late retraction wait until the next search, which is at `search_ms` if none is planned."""
        self.progress.requests += 1
        self.progress.searches += 1
        number, name = _digits(self.progress.requests), _search_name(task)
        self._store.put(_search_key(number, name), task.to_json())
        self._store.put(_BY_USER + name, number)
        if self.progress.next_search_ms is None:
            self.progress.next_search_ms = search_ms

    def take_searches_of(self, user_id: str) -> list[ErasureTask]:
        """Remove and return the late retractions of a user that wait."""
        found: list[ErasureTask | None] = []
        for place, number in self._searches_of(user_id):
            key = _search_key(number, place.removeprefix(_BY_USER))
            if (value := self._store.get(key)) is not None:
                found.append(self._take_search(key, value))
        return [task for task in found if task is not None]

    def _searches_of(self, user_id: str) -> list[tuple[bytes, bytes]]:
        prefix = b"%s%s " % (_BY_USER, user_id.encode())
        return list(islice(self._store.scan(prefix, prefix_end(prefix)), MAX_SEARCHES_OF_USER))

    def _take_search(self, place: bytes, value: bytes) -> ErasureTask | None:
        self._store.delete(place)
        self._store.delete(_BY_USER + place.removeprefix(_SEARCHES).split(b" ", 1)[-1])
        self.progress.searches = max(0, self.progress.searches - 1)
        return ErasureTask.read(value)

    def _take_oldest_searches(self, at_most: int) -> list[ErasureTask]:
        found = list(islice(self._store.scan(_SEARCHES, prefix_end(_SEARCHES)), at_most))
        if len(found) < at_most:
            self.progress.searches = len(found)
        tasks = [self._take_search(place, value) for place, value in found]
        return [task for task in tasks if task is not None]

    # --- active tasks ---

    def activate(self, now_ms: int) -> list[ErasureTask]:
        """Make waiting tasks active, and return them: erasures, or late retractions if their search is due.

        Late retractions also join any erasure. The oldest come first, so all get their turn.
        """
        waiting: list[tuple[bytes, bytes]] = []
        if self.progress.waiting:
            waiting = list(islice(self._store.scan(_WAITING, prefix_end(_WAITING)), TASKS_AT_ONCE))
        self.progress.waiting = max(0, self.progress.waiting - len(waiting))
        active: list[ErasureTask] = []
        for place, value in waiting:
            self._store.delete(place)
            if (task := ErasureTask.read(value)) is not None:
                self._store.put(_ACTIVE + _number(place), value)
                active.append(task)
        due_ms = self.progress.next_search_ms
        if due_ms is not None and (active or now_ms >= due_ms):
            self.progress.next_search_ms = None
            for task in self._take_oldest_searches(TASKS_AT_ONCE - len(active)):
                self.progress.requests += 1
                self._store.put(_ACTIVE + _digits(self.progress.requests), task.to_json())
                active.append(task)
        return active

    def plan_search(self, search_ms: int) -> None:
        """Search at `search_ms` for the late retractions that wait, if any do."""
        self.progress.next_search_ms = search_ms if self.progress.searches else None

    def active(self, at_most: int = TASKS_AT_ONCE) -> list[tuple[bytes, ErasureTask]]:
        """Return the first active tasks, with their numbers."""
        found: list[tuple[bytes, ErasureTask]] = []
        for place, value in islice(self._store.scan(_ACTIVE, prefix_end(_ACTIVE)), at_most):
            task = ErasureTask.read(value)
            if task is None:
                self.delete(_number(place))
            else:
                found.append((_number(place), task))
        return found

    def targets(self) -> ErasureTargets:
        """Return the targets of the active tasks. Cached, because every batch of a reread is compared with them."""
        return _targets(tuple(value for _, value in self._store.scan(_ACTIVE, prefix_end(_ACTIVE))))

    def put(self, number: bytes, task: ErasureTask) -> None:
        """Store an active task."""
        self._store.put(_ACTIVE + number, task.to_json())

    def delete(self, number: bytes) -> None:
        """Delete an active task, with all that belongs to it."""
        self._store.delete(_ACTIVE + number)
        for prefix in (_rewritten_key(number), _further_key(number)):
            for place, _ in list(self._store.scan(prefix, prefix_end(prefix))):
                self._store.delete(place)

    def take_further(self, number: bytes, at_most: int) -> list[FurtherRequest | None]:
        """Remove and return further requests that a task answers; None for each that cannot be read."""
        prefix = _further_key(number)
        found = list(islice(self._store.scan(prefix, prefix_end(prefix)), at_most))
        for place, _ in found:
            self._store.delete(place)
        return [FurtherRequest.read(value) for _, value in found]

    # --- rewritten batches ---

    def rewrites(self, batch_id: str) -> int:
        """Return the number of a batch's newest rewrite; 0 if it was never rewritten."""
        return _int_of(self._store.get(b"w/" + batch_id.encode())) or 0

    def put_rewrite(self, batch_id: str, rewrite: int) -> None:
        """Remember a batch's newest rewrite."""
        self._store.put(b"w/" + batch_id.encode(), b"%d" % rewrite)

    def add_rewritten(self, number: bytes, task: ErasureTask, batch_id: str, rewrite: int) -> None:
        """Add a rewritten batch to a task's report, which names the newest ones."""
        self._store.put(_rewritten_key(number, task.rewrites), f"{batch_id} {rewrite}".encode())
        if task.rewrites >= BATCHES_IN_REPORT:
            self._store.delete(_rewritten_key(number, task.rewrites - BATCHES_IN_REPORT))
        task.rewrites += 1

    def rewritten(self, number: bytes) -> dict[str, int]:
        """Return the batches that were rewritten for a task: batch_id -> its rewrite's number."""
        batches: dict[str, int] = {}
        prefix = _rewritten_key(number)
        for _, value in self._store.scan(prefix, prefix_end(prefix)):
            with suppress(ValueError):
                batch_id, rewrite = value.decode().split(" ")
                batches[batch_id] = int(rewrite)
        return batches

    # --- erased users ---

    def erased_user(self, user_id: str) -> ErasedUser | None:
        """Return the user, if records of theirs are erased on arrival."""
        if self.progress.next_unblock_ms is None:
            return None
        value = self._store.get(_user_key(user_id))
        return None if value is None else ErasedUser.read(value)

    def put_erased_user(self, user_id: str, user: ErasedUser, before: ErasedUser | None) -> None:
        """Store an erased user, in place of `before`."""
        if before is not None:
            self._store.delete(_unblock_key(before.until_ms, user_id))
        self._store.put(_user_key(user_id), user.to_json())
        self._store.put(_unblock_key(user.until_ms, user_id), b"")
        first = self.progress.next_unblock_ms
        self.progress.next_unblock_ms = user.until_ms if first is None else min(first, user.until_ms)

    def unblock(self, now_ms: int, at_most: int) -> bool:
        """Delete erased users whose time is over. Return whether there were any."""
        if self.progress.next_unblock_ms is None or now_ms < self.progress.next_unblock_ms:
            return False
        for place, _ in list(islice(self._store.scan(_UNBLOCK, _unblock_key(now_ms, "")), at_most)):
            self._store.delete(place)
            self._store.delete(b"f/" + place.split(b"/", 2)[-1])
        self.progress.next_unblock_ms = self._first_unblock_ms()
        return True

    def _first_unblock_ms(self) -> int | None:
        for place, _ in self._store.scan(_UNBLOCK, prefix_end(_UNBLOCK)):
            if (until_ms := _int_of(place.split(b"/", 2)[1])) is not None:
                return until_ms
            self._store.delete(place)
        return None


@lru_cache(maxsize=64)
def _targets(values: tuple[bytes, ...]) -> ErasureTargets:
    return ErasureTargets.of(task for value in values if (task := ErasureTask.read(value)) is not None)


def _int_of(value: bytes | None) -> int | None:
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def _digits(number: int) -> bytes:
    return b"%012d" % number


def _number(place: bytes) -> bytes:
    return place.rsplit(b"/", 1)[1]


def _search_name(task: ErasureTask) -> bytes:
    """Return what identifies a late retraction. Ids contain no spaces."""
    return f"{task.subject} {task.response_id} {task.event_id}".encode()


def _search_key(number: bytes, name: bytes) -> bytes:
    return b"%s%s %s" % (_SEARCHES, number, name)


def _user_key(user_id: str) -> bytes:
    return b"f/" + user_id.encode()


def _unblock_key(until_ms: int, user_id: str) -> bytes:
    return b"g/%016d/%s" % (max(until_ms, 0), user_id.encode())


def _further_key(number: bytes) -> bytes:
    """Return the prefix of a task's further requests."""
    return b"q/%s/" % number


def _rewritten_key(number: bytes, n: int | None = None) -> bytes:
    """Return the key of a task's n-th rewritten batch; without `n`, the prefix of all of them."""
    return b"r/%s/" % number if n is None else b"r/%s/%08d" % (number, n)
