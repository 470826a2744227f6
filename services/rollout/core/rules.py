"""Rules of one line: how a new version or an operator's command changes its state. Pure.

With `policy: direct`, a version that passed its gate against the stable version takes over at once. Otherwise it waits:

- for a new gate, if it was compared with a version that no longer serves;
- for `resume`, while a person has paused promotions or pinned a version;
- for `resume` or for new data, after a rollback: another version of the same data is not promoted.

A rollback walks back the history of promotions. It never returns to a version that was rolled back from, and such a
version is never promoted automatically again. Only a pin lets a version serve that did not pass its gate (I10).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import Field

from shared.commands import Command, Pin, Promote, Rollback
from shared.errors import Conflict, Rejected, UnknownVersion
from shared.events import Part, from_ms
from shared.versions import MAX_HISTORY, DatasetRef, ModelVersion, RolloutRecord, Verdict, VersionRef

Action = Literal["adopt_base", "promote", "rollback", "pause", "resume", "pin", "hold"]
MAX_PARTITIONS: Final = 1024
MAX_BATCH_NUMBER: Final = 2**63


class KnownVersion(Part):
    """What the rollout needs of a published version. A base has no verdict: a line starts with it."""

    ref: VersionRef
    verdict: Verdict | None = None
    gated_against: str | None = None
    gate_number: int = 0
    through: dict[int, int] = Field(
        default_factory=dict, description="Its data: partition -> highest batch number that was read."
    )
    rolled_back: bool = Field(
        False, description="A person rolled back from it and has not promoted it since."
    )

    @property
    def may_serve(self) -> bool:
        """Whether it may serve without a pin."""
        return self.ref.kind == "base" or self.verdict == "passed"


class LineState(Part):
    """State of one line. Each of its versions has a state of its own (`KnownVersion`)."""

    line: str
    record: RolloutRecord | None = Field(
        None, description="The newest rollout record, or None until the base is published."
    )
    waiting: str | None = Field(None, description="Newest passed version that is not promoted yet.")
    excluded: dict[int, int] | None = Field(
        None,
        description="Set while a rollback pauses promotions: only a version with data beyond this is promoted.",
    )


Lookup = Callable[[str], KnownVersion | None]
"""Returns a version of the line by name, or None if it is unknown."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The changed state, and what to publish.

    Attributes:
        state: The line's next state.
        versions: Versions whose state changes.
        record: The rollout record to publish, if any.
        gate_again: A version to request a new gate for.
        message: The answer to the operator.

    """

    state: LineState
    versions: tuple[KnownVersion, ...] = ()
    record: RolloutRecord | None = None
    gate_again: str | None = None
    message: str = ""


def on_version(state: LineState, version: ModelVersion, lookup: Lookup, now_ms: int) -> Decision:
    """Decide what a published version changes. A known version changes nothing, unless it has a later gate report.

    Raises:
        Rejected: The version's name belongs to another line.
        Conflict: A version of this name but with another artifact is known.

    """
    name = version.ref.version
    if not name.startswith(f"{state.line}@"):
        raise Rejected(f"version {name} does not belong to line {state.line}, which its record names")
    known, new = lookup(name), _known_version(version)
    if known is not None:
        if known.ref != new.ref:
            raise Conflict(f"version {name} was published before with another artifact; the first one counts")
        serves = state.record is not None and state.record.stable.version == name
        if serves or new.gate_number <= known.gate_number:
            return Decision(state)
        new = new.model_copy(update={"rolled_back": known.rolled_back})
    if state.record is not None:
        return _consider(state, state.record, new, lookup, now_ms)
    if new.ref.kind != "base":
        waiting = name if new.verdict == "passed" else state.waiting
        return Decision(state.model_copy(update={"waiting": waiting}), (new,))
    reason = f"{name} is the line's base; it serves until a better version is found"
    decision = _publish(state, "adopt_base", new.ref, (), reason, now_ms)
    return _with(decision, versions=(new,), gate_again=state.waiting)


def _known_version(version: ModelVersion) -> KnownVersion:
    gate = version.gate
    return KnownVersion(
        ref=version.ref,
        verdict=gate.verdict if gate else None,
        gated_against=gate.gated_against if gate else None,
        gate_number=gate.number if gate else 0,
        through=_through(version.dataset),
    )


def _through(dataset: DatasetRef | None) -> dict[int, int]:
    """Return the data of a version, without partitions and batch numbers that cannot exist."""
    through = {} if dataset is None else dataset.through
    return {
        int(partition): number
        for partition, number in through.items()
        if partition.isascii()
        and partition.isdigit()
        and len(partition) <= len(str(MAX_PARTITIONS))
        and int(partition) < MAX_PARTITIONS
        and 0 <= number < MAX_BATCH_NUMBER
    }


def _consider(
    state: LineState, record: RolloutRecord, new: KnownVersion, lookup: Lookup, now_ms: int
) -> Decision:
    """Promote a version, let it wait, or do neither if it did not pass."""
    name, stable = new.ref.version, record.stable.version
    if new.verdict != "passed" or new.rolled_back:
        if state.waiting != name:
            return Decision(state, (new,))
        state = state.model_copy(update={"waiting": None})
        text = "was rolled back from" if new.rolled_back else f"did not pass its new gate ({new.verdict})"
        return _with(_hold(state, record, f"{name} waits no longer: it {text}", now_ms), versions=(new,))
    waits = state.model_copy(update={"waiting": name})
    paused = _paused_for(state, record, new)
    if paused is not None:
        return _with(
            _hold(waits, record, f"{name} passed its gate and waits: {paused}", now_ms), versions=(new,)
        )
    if new.gated_against != stable:
        reason = (
            f"{name} passed its gate against {new.gated_against}, but {stable} serves: "
            f"it is evaluated again; to request it by hand: `loopwright gate {name} --again`"
        )
        return _with(_hold(waits, record, reason, now_ms), versions=(new,), gate_again=name)
    return _with(_promote(state, record, new, "policy direct", lookup, now_ms), versions=(new,))


def _paused_for(state: LineState, record: RolloutRecord, version: KnownVersion) -> str | None:
    """Return why promotions are paused for this version, or None if they are not."""
    if not record.paused:
        return None
    if state.excluded is None:
        return "promotions are paused until `loopwright rollout resume`"
    if any(number > state.excluded.get(partition, 0) for partition, number in version.through.items()):
        return None
    return (
        "after a rollback, versions of the same data are not promoted until `loopwright rollout resume` "
        "or until a version has new data"
    )


def _hold(state: LineState, record: RolloutRecord, reason: str, now_ms: int) -> Decision:
    return _publish(state, "hold", record.stable, record.history, reason, now_ms, paused=record.paused)


def _promote(
    state: LineState,
    record: RolloutRecord,
    version: KnownVersion,
    why: str,
    lookup: Lookup,
    now_ms: int,
    command_id: str | None = None,
) -> Decision:
    """Promote a version that passed its gate against the stable version. This ends a pause."""
    state = state.model_copy(update={"waiting": None, "excluded": None})
    reason = f"{version.ref.version} passed its gate against {record.stable.version}; {why}"
    history = _history_after(record, version.ref, stable_may_serve=_may_serve(record.stable, lookup))
    return _publish(state, "promote", version.ref, history, reason, now_ms, command_id, paused=False)


def on_command(state: LineState, command: Command, lookup: Lookup, now_ms: int) -> Decision:
    """Execute an operator's command.

    Raises `Rejected` or `UnknownVersion` with the remedy if that is not possible.
    """
    record = state.record
    if record is None:
        raise Rejected(f"line {state.line} has no base yet: start its trainer, which publishes it")
    by = f"by {command.issued_by}"
    if isinstance(command, Promote):
        known = _find(state, command.version, lookup)
        _require_passed(known)
        return _serve(state, record, "promote", known, f"promoted {by}", command.command_id, lookup, now_ms)
    if isinstance(command, Pin):
        known = _find(state, command.version, lookup)
        reason = f"pinned {by}; verdict {known.verdict or 'none'}"
        return _serve(state, record, "pin", known, reason, command.command_id, lookup, now_ms)
    if isinstance(command, Rollback):
        return _roll_back(state, record, command, by, lookup, now_ms)
    if command.kind == "pause":
        state = state.model_copy(update={"excluded": None})
        return _publish(
            state,
            "pause",
            record.stable,
            record.history,
            f"paused {by}",
            now_ms,
            command.command_id,
            paused=True,
        )
    if command.kind == "resume":
        return _resume(state, record, command.command_id, by, lookup, now_ms)
    raise Rejected(f"the rollout does not execute `{command.kind}`")


def _serve(
    state: LineState,
    record: RolloutRecord,
    action: Literal["promote", "pin"],
    known: KnownVersion,
    reason: str,
    command_id: str,
    lookup: Lookup,
    now_ms: int,
) -> Decision:
    """Make a version stable because a person chose it. A pin also pauses promotions."""
    name = known.ref.version
    update: dict[str, object] = {"waiting": None} if state.waiting == name else {}
    if action == "pin":
        update["excluded"] = None
    history = _history_after(record, known.ref, stable_may_serve=_may_serve(record.stable, lookup))
    decision = _publish(
        state.model_copy(update=update),
        action,
        known.ref,
        history,
        reason,
        now_ms,
        command_id,
        paused=record.paused or action == "pin",
    )
    return _with(decision, versions=(known.model_copy(update={"rolled_back": False}),))


def _resume(
    state: LineState, record: RolloutRecord, command_id: str, by: str, lookup: Lookup, now_ms: int
) -> Decision:
    """End a pause. Promote the version that it held back, or request a new gate for it."""
    known = lookup(state.waiting) if state.waiting else None
    ready = known is not None and known.verdict == "passed" and not known.rolled_back
    if known is not None and ready and known.gated_against == record.stable.version:
        return _promote(state, record, known, f"resumed {by}", lookup, now_ms, command_id)
    state = state.model_copy(update={"excluded": None, "waiting": state.waiting if ready else None})
    reason = f"resumed {by}"
    if state.waiting is not None:
        reason += f"; {state.waiting} is evaluated again, against {record.stable.version}"
    decision = _publish(
        state, "resume", record.stable, record.history, reason, now_ms, command_id, paused=False
    )
    return _with(decision, gate_again=state.waiting)


# --- rollback ---------------------------------------------------------------------------------------------------


def _roll_back(
    state: LineState, record: RolloutRecord, command: Rollback, by: str, lookup: Lookup, now_ms: int
) -> Decision:
    stable = record.stable.version
    if command.leaving is not None and command.leaving != stable:
        left = lookup(command.leaving)
        done = "was rolled back from already" if left is not None and left.rolled_back else "does not serve"
        return Decision(
            state, message=f"nothing changed: {command.leaving} {done}; {stable} serves (seq {record.seq})"
        )
    if command.version == stable:
        return Decision(state, message=f"nothing changed: {stable} serves already (seq {record.seq})")
    target, skipped, history = _rollback_target(state, record, command.version, lookup)
    left_versions = _left_versions([record.stable, *skipped], target, lookup)
    waiting = None if state.waiting in {known.ref.version for known in left_versions} else state.waiting
    paused_by_person = record.paused and state.excluded is None
    excluded = None
    if not paused_by_person:
        excluded = _highest(
            [state.excluded or {}, target.through, *(known.through for known in left_versions)]
        )
    pause = "promotions stay paused" if paused_by_person else "promotion of the same data is paused"
    reason = f"rolled back from {stable} {by}; {pause}"
    decision = _publish(
        state.model_copy(update={"excluded": excluded, "waiting": waiting}),
        "rollback",
        target.ref,
        history,
        reason,
        now_ms,
        command.command_id,
        paused=True,
    )
    until = "`loopwright rollout resume`" + ("" if paused_by_person else ", or a version with new data")
    return _with(
        decision,
        versions=left_versions,
        message=f"{decision.message}; promotions are paused until {until}",
    )


def _rollback_target(
    state: LineState, record: RolloutRecord, wanted: str | None, lookup: Lookup
) -> tuple[KnownVersion, list[VersionRef], tuple[VersionRef, ...]]:
    """Return the version to return to, the versions between it and the stable one, and the remaining history."""
    candidates = [
        (known, ref)
        for ref in record.history
        if ref.version != record.stable.version
        and (known := lookup(ref.version)) is not None
        and known.may_serve
        and not known.rolled_back
    ]
    refs = [ref for _, ref in candidates]
    if wanted is None:
        if not candidates:
            raise Rejected(
                f"{record.stable.version} has no earlier version to return to; "
                "choose one of `loopwright versions` with `loopwright rollout promote`"
            )
        return candidates[0][0], [], _without(refs, candidates[0][1])
    known = _find(state, wanted, lookup)
    _require_passed(known)
    if known.rolled_back:
        raise Rejected(
            f"{wanted} was rolled back from: to serve it nevertheless, `loopwright rollout promote {wanted}`"
        )
    place = next((place for place, ref in enumerate(refs) if ref.version == wanted), None)
    if place is None:
        return known, [], tuple(refs)
    return known, refs[:place], _without(refs[place:], known.ref)


def _without(refs: Sequence[VersionRef], left_out: VersionRef) -> tuple[VersionRef, ...]:
    return tuple(ref for ref in refs if ref.version != left_out.version)


def _left_versions(
    refs: Sequence[VersionRef], target: KnownVersion, lookup: Lookup
) -> tuple[KnownVersion, ...]:
    """Return the state of the versions that a rollback leaves: none of them is promoted automatically again."""
    names = dict.fromkeys(ref.version for ref in refs if ref.version != target.ref.version)
    known = [lookup(name) for name in names]
    return tuple(each.model_copy(update={"rolled_back": True}) for each in known if each is not None)


def _highest(parts: Sequence[Mapping[int, int]]) -> dict[int, int]:
    return {
        partition: max(part.get(partition, 0) for part in parts)
        for partition in sorted({partition for part in parts for partition in part})
    }


# --- shared -----------------------------------------------------------------------------------------------------


def _find(state: LineState, name: str, lookup: Lookup) -> KnownVersion:
    known = lookup(name)
    if known is None:
        raise UnknownVersion(f"line {state.line} has no version {name}; `loopwright versions` lists them")
    return known


def _may_serve(ref: VersionRef, lookup: Lookup) -> bool:
    known = lookup(ref.version)
    return known is not None and known.may_serve


def _require_passed(known: KnownVersion) -> None:
    if known.may_serve:
        return
    name = known.ref.version
    text = "has no gate report" if known.verdict is None else f"did not pass its gate ({known.verdict})"
    raise Rejected(
        f"{name} {text}: only the base and versions that passed can be chosen; "
        f"to serve it anyway: `loopwright rollout pin {name}`"
    )


def _history_after(
    record: RolloutRecord, next_stable: VersionRef, *, stable_may_serve: bool
) -> tuple[VersionRef, ...]:
    """Return the history after a promotion: the version that served is added, unless only a pin let it serve.

    The oldest entry, which is the base, stays when the history is full.
    """
    if record.stable.version == next_stable.version or not stable_may_serve:
        return record.history
    history = (record.stable, *record.history)
    return history if len(history) <= MAX_HISTORY else (*history[: MAX_HISTORY - 1], history[-1])


def _publish(
    state: LineState,
    action: Action,
    stable: VersionRef,
    history: tuple[VersionRef, ...],
    reason: str,
    now_ms: int,
    command_id: str | None = None,
    *,
    paused: bool = False,
) -> Decision:
    """Return the decision with the line's next record."""
    record = RolloutRecord(
        line=state.line,
        seq=state.record.seq + 1 if state.record else 1,
        action=action,
        stable=stable,
        previous=history[0] if history else None,
        history=history,
        waiting=state.waiting,
        paused=paused,
        reason=reason[:1024],
        command_id=command_id,
        decided_at=from_ms(now_ms),
    )
    return Decision(
        state.model_copy(update={"record": record}),
        record=record,
        message=f"{stable.version} serves (seq {record.seq})",
    )


def _with(
    decision: Decision,
    *,
    versions: tuple[KnownVersion, ...] = (),
    gate_again: str | None = None,
    message: str | None = None,
) -> Decision:
    """Return the decision with more of what follows from it."""
    return Decision(
        decision.state,
        versions or decision.versions,
        decision.record,
        gate_again or decision.gate_again,
        message or decision.message,
    )
