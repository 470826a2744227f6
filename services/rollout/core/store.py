"""Keys and values of the rollout's state, and what of it expires. Pure.

| key | value |
| --- | --- |
| `l/<line>` | `LineState`, with the counters of the line's version index |
| `v/<line>/<version>` | `KnownVersion` |
| `o/<line>/<n>` | name of the n-th version, in order of arrival, so that old ones expire |
| `k/<line>` | `CanaryWatch`: the canary that is tried, or what is left of one |
| `p/<line>` | `CanaryPoints`: the intervals of the canary over time |
| `u/<line>/<seq><user>` | what is known of a user in the step that began with the record `seq` |
| `c/<command_id>` | `ExecutedCommand` |
| `d/<n>` | id of the n-th executed command, so that old ones expire |
| `n` | counters of the command index |

Numbers in keys have eight bytes, most significant first. Of each line, the newest `MAX_VERSIONS` versions are kept, and
every version that serves, waits, or may be returned to. Of a canary, the users of its present step are kept. Executed
commands are kept for `COMMAND_MS`, at most `MAX_COMMANDS` of them. A value that cannot be decoded never stops the
partition: such a line refuses its records, such a version counts as unknown, and such a canary's step begins again.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final, Literal, TypeVar

from pydantic import ValidationError

from services.rollout.core.decision import KnownVersion, LineState, Lookup
from services.rollout.core.trial import Trial, UserMark
from shared.errors import Rejected
from shared.events import Part
from shared.stream.step import State
from shared.versions import CanaryPoint

MAX_VERSIONS: Final = 1_000
MAX_COMMANDS: Final = 10_000
COMMAND_MS: Final = 90 * 86_400_000
"""As long as `operator.commands` is retained, in append time."""
EXPIRED_PER_RECORD: Final = 4
"""How many versions, and how many commands, expire with one record at most."""
USERS_DELETED_PER_RECORD: Final = 100
P = TypeVar("P", bound=Part)


class Index(Part):
    """The numbers of an index: the oldest one still there, and the next one to assign."""

    first: int = 0
    next: int = 0


class StoredLine(Part):
    """Value of a line."""

    state: LineState
    versions: Index = Index()


class CanaryWatch(Part):
    """What feedback and responses of a line mean for its canary. A line without one ignores them."""

    trial: Trial | None = None
    wake_ms: int = 0
    """When the version that waits is considered again; 0 for never."""
    has_old_users: bool = False
    """Whether users of earlier steps are still to be deleted."""


class CanaryPoints(Part):
    """The intervals of the newest canary over time."""

    canary: str
    points: tuple[CanaryPoint, ...] = ()


class ExecutedCommand(Part):
    """What a command was, and its result."""

    content: str
    """Digest of what the command asks for; empty if it is not known any more."""
    status: Literal["done", "refused"]
    message: str
    at_ms: int


class UnreadableState(Rejected):
    """The stored state of a line cannot be decoded."""

    code = "unreadable_state"


def read_line(state: State, line: str) -> LineState:
    """Return the state of a line, which may be new. Raises `UnreadableState`."""
    return _read_line(state, line).state


def lookup(state: State, line: str) -> Lookup:
    """Return the function that reads the line's versions."""
    return lambda version: _decode(KnownVersion, state.get(_version_key(line, version)))


def write(state: State, line: LineState, versions: Iterable[KnownVersion]) -> None:
    """Write a line and the given versions of it. Old versions expire."""
    index = _read_line(state, line.line).versions
    for version in versions:
        key = _version_key(line.line, version.ref.version)
        if state.get(key) is None:
            state.put(_order_key(line.line, index.next), version.ref.version.encode())
            index = Index(first=index.first, next=index.next + 1)
        state.put(key, _encode(version))
    index = _expire_versions(state, line, index)
    state.put(_line_key(line.line), _encode(StoredLine(state=line, versions=index)))


def read_watch(state: State, line: str) -> CanaryWatch | None:
    """Return what is watched for a line, or None if nothing is. One that cannot be read is begun again."""
    value = state.get(_watch_key(line))
    return (
        None if value is None else _decode(CanaryWatch, value) or CanaryWatch(wake_ms=1, has_old_users=True)
    )


def write_watch(state: State, line: str, watch: CanaryWatch | None) -> None:
    """Write what is watched for a line; nothing, if it has no purpose any more."""
    if watch is None or (watch.trial is None and not watch.wake_ms and not watch.has_old_users):
        state.delete(_watch_key(line))
    else:
        state.put(_watch_key(line), _encode(watch))


def read_points(state: State, line: str, canary: str) -> tuple[CanaryPoint, ...]:
    """Return the intervals of a canary over time; none, if the stored ones are those of another."""
    stored = _decode(CanaryPoints, state.get(_points_key(line)))
    return () if stored is None or stored.canary != canary else stored.points


def write_points(state: State, line: str, canary: str, points: tuple[CanaryPoint, ...]) -> None:
    """Write the intervals of a canary over time, in place of those of an earlier one."""
    state.put(_points_key(line), _encode(CanaryPoints(canary=canary, points=points)))


def read_mark(state: State, trial: Trial, user: str) -> UserMark | None:
    """Return what is known of a user in the present step, or None if nothing is."""
    value = state.get(_user_key(trial.line, trial.run, user))
    try:
        if value is None:
            return None
        seen, voted, period = value.decode().split(",")
        return UserMark(seen == "1", voted == "1", int(period))
    except ValueError:
        return UserMark(seen=True, voted=True, period=1 << 62)


def write_mark(state: State, trial: Trial, user: str, mark: UserMark) -> None:
    """Store what is known of a user in the present step."""
    value = f"{mark.seen:d},{mark.voted:d},{mark.period}"
    state.put(_user_key(trial.line, trial.run, user), value.encode())


def delete_old_users(state: State, line: str, watch: CanaryWatch) -> CanaryWatch:
    """Delete some users of steps before the present one, a bounded number."""
    if not watch.has_old_users:
        return watch
    end = watch.trial.run if watch.trial is not None else (1 << 64) - 1
    keys = [
        key
        for key, _ in islice(
            state.scan(_user_key(line, 0, ""), _user_key(line, end, "")), USERS_DELETED_PER_RECORD
        )
    ]
    for key in keys:
        state.delete(key)
    return watch.model_copy(update={"has_old_users": len(keys) == USERS_DELETED_PER_RECORD})


def read_executed(state: State, command_id: str) -> ExecutedCommand | None:
    """Return an executed command, or None if it was not executed, or expired."""
    value = state.get(_command_key(command_id))
    executed = _decode(ExecutedCommand, value)
    if executed is None and value is not None:
        message = "executed before, but its result cannot be read any more: see `loopwright status`"
        return ExecutedCommand(content="", status="refused", message=message, at_ms=0)
    return executed


def remember(state: State, command_id: str, executed: ExecutedCommand) -> None:
    """Store an executed command. Old ones expire."""
    index = _decode(Index, state.get(_COMMANDS)) or Index()
    state.put(_command_key(command_id), _encode(executed))
    state.put(_number_key(b"d/", index.next), command_id.encode())
    first, oldest_ms = index.first, executed.at_ms - COMMAND_MS
    end = min(index.next, index.first + EXPIRED_PER_RECORD)
    while first < end:
        key = _number_key(b"d/", first)
        old_id = (state.get(key) or b"").decode(errors="replace")
        old = _decode(ExecutedCommand, state.get(_command_key(old_id)))
        if index.next + 1 - first <= MAX_COMMANDS and old is not None and old.at_ms >= oldest_ms:
            break
        state.delete(_command_key(old_id))
        state.delete(key)
        first += 1
    state.put(_COMMANDS, _encode(Index(first=first, next=index.next + 1)))


_COMMANDS: Final = b"n"


def _read_line(state: State, line: str) -> StoredLine:
    value = state.get(_line_key(line))
    if value is None:
        return StoredLine(state=LineState(line=line))
    stored = _decode(StoredLine, value)
    if stored is None:
        raise UnreadableState(
            f"the rollout's state of line {line} cannot be read: a newer release seems to have written it, so run "
            "that release"
        )
    return stored


def _expire_versions(state: State, line: LineState, index: Index) -> Index:
    """Delete the oldest versions beyond `MAX_VERSIONS`. Those in use move to the end of the index."""
    used = {line.waiting}
    if line.record is not None:
        used |= {ref.version for ref in (line.record.stable, line.record.canary, *line.record.history) if ref}
    first, end = index.first, index.next
    for _ in range(EXPIRED_PER_RECORD):
        if end - first <= MAX_VERSIONS:
            break
        key = _order_key(line.line, first)
        name = (state.get(key) or b"").decode(errors="replace")
        state.delete(key)
        first += 1
        if name in used:
            state.put(_order_key(line.line, end), name.encode())
            end += 1
        else:
            state.delete(_version_key(line.line, name))
    return Index(first=first, next=end)


def _line_key(line: str) -> bytes:
    return b"l/" + line.encode()


def _watch_key(line: str) -> bytes:
    return b"k/" + line.encode()


def _points_key(line: str) -> bytes:
    return b"p/" + line.encode()


def _user_key(line: str, run: int, user: str) -> bytes:
    return _number_key(f"u/{line}/".encode(), run) + user.encode()


def _version_key(line: str, version: str) -> bytes:
    return f"v/{line}/{version}".encode()


def _order_key(line: str, number: int) -> bytes:
    return _number_key(f"o/{line}/".encode(), number)


def _command_key(command_id: str) -> bytes:
    return b"c/" + command_id.encode()


def _number_key(prefix: bytes, number: int) -> bytes:
    return prefix + number.to_bytes(8, "big")


def _encode(value: Part) -> bytes:
    return value.model_dump_json(exclude_none=True).encode()


def _decode(kind: type[P], value: bytes | None) -> P | None:
    """Return the value, or None if it is missing or cannot be decoded."""
    try:
        return None if value is None else kind.model_validate_json(value)
    except ValidationError:
        return None
