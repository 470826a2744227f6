"""Rules of one line: what an operator's command changes. Commands win over the canary. Pure.

A rollback walks back the history of promotions. It never returns to a version that was rolled back from, and such a
version is never promoted automatically again. Only a pin lets a version serve that did not pass its gate (I10). While a
canary is tried, a rollback that names no version means the canary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from services.rollout.core import canary
from services.rollout.core.decision import (
    Decision,
    KnownVersion,
    LineState,
    Lookup,
    extend,
    history_after,
    is_allowed,
    keep_serving,
    publish,
    was_paused_by_person,
)
from services.rollout.core.policy import CanaryPolicy
from services.rollout.core.rules import take_over
from shared.commands import Command, Pin, Promote, Rollback
from shared.errors import Rejected, UnknownVersion
from shared.versions import RolloutRecord, VersionRef


def on_command(
    state: LineState, command: Command, lookup: Lookup, policy: CanaryPolicy, now_ms: int
) -> Decision:
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
        if _is_canary(record, command):
            return _abort_canary(state, record, command, by, lookup, policy, now_ms)
        return _roll_back(state, record, command, by, lookup, now_ms)
    if command.kind == "pause":
        state = state.model_copy(update={"excluded": None})
        return keep_serving(state, record, "pause", f"paused {by}", now_ms, command.command_id, paused=True)
    if command.kind == "resume":
        return _resume(state, record, command.command_id, by, lookup, policy, now_ms)
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
    """Make a version stable because a person chose it. A pin also pauses promotions. A canary ends and waits."""
    name = known.ref.version
    waiting = _waiting_after(state, record, name)
    update: dict[str, object] = {"waiting": waiting}
    if action == "pin":
        update["excluded"] = None
    history = history_after(record, known.ref, stable_may_serve=is_allowed(record.stable, lookup))
    decision = publish(
        state.model_copy(update=update),
        action,
        known.ref,
        history,
        reason,
        now_ms,
        command_id,
        paused=record.paused or action == "pin",
    )
    paused = record.paused or action == "pin"
    return extend(
        decision,
        versions=(known.model_copy(update={"rolled_back": False}),),
        gate_again=None if record.canary is None or paused else waiting,
    )


def _waiting_after(state: LineState, record: RolloutRecord, chosen: str) -> str | None:
    """Return the version that waits after a person chose another one: the one that waited, or the canary that ends."""
    if state.waiting is not None and state.waiting != chosen:
        return state.waiting
    return None if record.canary is None or record.canary.version == chosen else record.canary.version


def _resume(
    state: LineState,
    record: RolloutRecord,
    command_id: str,
    by: str,
    lookup: Lookup,
    policy: CanaryPolicy,
    now_ms: int,
) -> Decision:
    """End a pause. Try or promote the version that it held back, or request a new gate for it."""
    if record.canary is not None:
        state = state.model_copy(update={"excluded": None})
        return keep_serving(state, record, "resume", f"resumed {by}", now_ms, command_id, paused=False)
    known = lookup(state.waiting) if state.waiting else None
    ready = known is not None and known.verdict == "passed" and not known.rolled_back
    if known is not None and ready and known.gated_against == record.stable.version:
        return take_over(state, record, known, f"resumed {by}", lookup, policy, now_ms, command_id)
    state = state.model_copy(update={"excluded": None, "waiting": state.waiting if ready else None})
    reason = f"resumed {by}"
    if state.waiting is not None:
        reason += f"; {state.waiting} is evaluated again, against {record.stable.version}"
    decision = publish(
        state, "resume", record.stable, record.history, reason, now_ms, command_id, paused=False
    )
    return extend(decision, gate_again=state.waiting)


# --- rollback ---------------------------------------------------------------------------------------------------


def _is_canary(record: RolloutRecord, command: Rollback) -> bool:
    """Return whether a rollback means the canary: it names it, or names neither what it leaves nor where it goes."""
    if record.canary is None:
        return False
    if command.leaving is not None:
        return command.leaving == record.canary.version
    return command.version in (None, record.stable.version)


def _abort_canary(
    state: LineState,
    record: RolloutRecord,
    command: Rollback,
    by: str,
    lookup: Lookup,
    policy: CanaryPolicy,
    now_ms: int,
) -> Decision:
    assert record.canary is not None
    known = _find(state, record.canary.version, lookup)
    if command.version not in (None, record.stable.version):
        raise Rejected(
            f"{known.ref.version} is the canary, so a rollback from it returns to {record.stable.version}: leave out "
            "the other version, or choose it with `loopwright rollout promote`"
        )
    reason = f"canary {known.ref.version} rolled back {by}"
    return canary.roll_back(state, record, known, reason, lookup, policy, now_ms, command.command_id)


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
    waiting = _waiting_after(state, record, target.ref.version)
    waiting = None if waiting in {known.ref.version for known in left_versions} else waiting
    paused_by_person = was_paused_by_person(state, record)
    excluded = None
    if not paused_by_person:
        excluded = canary.highest(
            [state.excluded or {}, target.through, *(known.through for known in left_versions)]
        )
    pause = "promotions stay paused" if paused_by_person else "promotion of the same data is paused"
    reason = f"rolled back from {stable} {by}; {pause}"
    decision = publish(
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
    return extend(
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


def _find(state: LineState, name: str, lookup: Lookup) -> KnownVersion:
    known = lookup(name)
    if known is None:
        raise UnknownVersion(f"line {state.line} has no version {name}; `loopwright versions` lists them")
    return known


def _require_passed(known: KnownVersion) -> None:
    if known.may_serve:
        return
    name = known.ref.version
    text = "has no gate report" if known.verdict is None else f"did not pass its gate ({known.verdict})"
    raise Rejected(
        f"{name} {text}: only the base and versions that passed can be chosen; "
        f"to serve it anyway: `loopwright rollout pin {name}`"
    )
