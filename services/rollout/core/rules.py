"""Rules of one line: how a new version changes its state. Pure.

With `policy: direct`, a version that passed its gate against the stable version takes over at once; with `canary`, it
is tried on a share of the users first (`canary.py`). Before that it may have to wait:

- for a new gate, if it was compared with a version that no longer serves;
- for `resume`, while a person has paused promotions or pinned a version;
- for `resume` or for new data, after a rollback: another version of the same data is not promoted;
- for the end of the canary that is being tried, or of the time after the rollback of one.
"""

from __future__ import annotations

from typing import Final

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
)
from services.rollout.core.policy import CanaryPolicy
from shared.errors import Conflict, Rejected
from shared.events import from_ms
from shared.versions import DatasetRef, ModelVersion, RolloutRecord

MAX_PARTITIONS: Final = 1024
MAX_BATCH_NUMBER: Final = 2**63


def on_version(
    state: LineState, version: ModelVersion, lookup: Lookup, policy: CanaryPolicy, now_ms: int
) -> Decision:
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
        return consider(state, state.record, new, lookup, policy, now_ms)
    if new.ref.kind != "base":
        waiting = name if new.verdict == "passed" else state.waiting
        return Decision(state.model_copy(update={"waiting": waiting}), (new,))
    reason = f"{name} is the line's base; it serves until a better version is found"
    decision = publish(state, "adopt_base", new.ref, (), reason, now_ms)
    return extend(decision, versions=(new,), gate_again=state.waiting)


def _known_version(version: ModelVersion) -> KnownVersion:
    gate = version.gate
    return KnownVersion(
        ref=version.ref,
        verdict=gate.verdict if gate else None,
        gated_against=gate.gated_against if gate else None,
        gate_number=gate.number if gate else 0,
        through=_through(version.dataset),
        users=version.dataset.users if version.dataset else 0,
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


def consider(
    state: LineState,
    record: RolloutRecord,
    new: KnownVersion,
    lookup: Lookup,
    policy: CanaryPolicy,
    now_ms: int,
) -> Decision:
    """Promote a version or try it as canary, let it wait, or do neither if it did not pass."""
    name, stable = new.ref.version, record.stable.version
    if record.canary is not None and record.canary.version == name:
        return _regated(state, record, new, now_ms)
    if new.verdict != "passed" or new.rolled_back:
        if state.waiting != name:
            return Decision(state, (new,))
        state = state.model_copy(update={"waiting": None})
        text = "was rolled back from" if new.rolled_back else f"did not pass its new gate ({new.verdict})"
        return extend(_hold(state, record, f"{name} waits no longer: it {text}", now_ms), versions=(new,))
    waits = state.model_copy(update={"waiting": name})
    paused = _paused_for(state, record, new)
    if paused is not None:
        return extend(
            _hold(waits, record, f"{name} passed its gate and waits: {paused}", now_ms), versions=(new,)
        )
    if new.gated_against != stable:
        reason = (
            f"{name} passed its gate against {new.gated_against}, but {stable} serves: "
            f"it is evaluated again; to request it by hand: `loopwright gate {name} --again`"
        )
        return extend(_hold(waits, record, reason, now_ms), versions=(new,), gate_again=name)
    busy = _busy(state, record, new, policy, now_ms)
    if busy is not None:
        return extend(
            _hold(waits, record, f"{name} passed its gate and waits: {busy}", now_ms), versions=(new,)
        )
    return extend(
        take_over(state, record, new, f"policy {policy.name}", lookup, policy, now_ms), versions=(new,)
    )


def _regated(state: LineState, record: RolloutRecord, canary: KnownVersion, now_ms: int) -> Decision:
    """Note a later gate report of the canary. If it did not pass this time, no user gets it any more."""
    if canary.verdict == "passed":
        return Decision(state, (canary,))
    reason = f"{canary.ref.version} is no canary any more: it did not pass its new gate ({canary.verdict})"
    ended = publish(state, "hold", record.stable, record.history, reason, now_ms, paused=record.paused)
    return extend(ended, versions=(canary,), gate_again=state.waiting)


def _busy(
    state: LineState, record: RolloutRecord, version: KnownVersion, policy: CanaryPolicy, now_ms: int
) -> str | None:
    """Return why no other version may become canary now, or None if one may."""
    if record.canary is not None:
        return f"{record.canary.version} is tried as canary; it is evaluated again if that one takes over"
    if policy.tries(version.users) and now_ms < state.cool_until_ms:
        return f"after the rollback of a canary, none starts before {from_ms(state.cool_until_ms):%Y-%m-%d %H:%M} UTC"
    return None


def take_over(
    state: LineState,
    record: RolloutRecord,
    version: KnownVersion,
    why: str,
    lookup: Lookup,
    policy: CanaryPolicy,
    now_ms: int,
    command_id: str | None = None,
) -> Decision:
    """Promote a version that passed its gate against the stable version, or try it as canary. This ends a pause."""
    if policy.tries(version.users):
        return canary.start(state, record, version, why, policy, now_ms, command_id)
    if policy.name == "canary":
        why = f"{why}; no canary, because it has feedback of {version.users} users, fewer than {policy.feedback_users}"
    return _promote(state, record, version, why, lookup, now_ms, command_id)


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
    return keep_serving(state, record, "hold", reason, now_ms, paused=record.paused)


def _promote(
    state: LineState,
    record: RolloutRecord,
    version: KnownVersion,
    why: str,
    lookup: Lookup,
    now_ms: int,
    command_id: str | None = None,
) -> Decision:
    """Promote a version that passed its gate against the stable version."""
    state = state.model_copy(update={"waiting": None, "excluded": None})
    reason = f"{version.ref.version} passed its gate against {record.stable.version}; {why}"
    history = history_after(record, version.ref, stable_may_serve=is_allowed(record.stable, lookup))
    return publish(state, "promote", version.ref, history, reason, now_ms, command_id, paused=False)
