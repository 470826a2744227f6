"""Rules of one line: how a new version or an operator's command changes its state. Pure.

With `policy: direct`, a version that passed the gate against the current stable version takes over at once. A version
that was gated against another one is not promoted, because the version it was compared with no longer serves. Only a
pin lets a version serve that did not pass (I10).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from shared.commands import Command, Pin, Promote, Rollback
from shared.errors import Rejected, UnknownVersion
from shared.events import Part, from_ms
from shared.versions import ModelVersion, RolloutRecord, Verdict, VersionRef

Action = Literal["adopt_base", "promote", "rollback", "pause", "resume", "pin"]


class KnownVersion(Part):
    """What the rollout needs of a published version. A base has no verdict: a line starts with it."""

    ref: VersionRef
    verdict: Verdict | None = None
    gated_against: str | None = None


class LineState(Part):
    """State of one line. `record` is its newest rollout record, or None until its base is published."""

    line: str
    record: RolloutRecord | None = None
    versions: dict[str, KnownVersion] = Field(default_factory=dict)
    waiting: str | None = Field(None, description="Newest passed version that a pause holds back.")


@dataclass(frozen=True, slots=True)
class Decision:
    """The line's next state, the record to publish if there is one, and the answer to the operator."""

    state: LineState
    record: RolloutRecord | None = None
    message: str = ""


def on_version(state: LineState, version: ModelVersion, now_ms: int) -> Decision:
    """Decide whether a published version serves. A version that is already known changes nothing."""
    name = version.ref.version
    if name in state.versions:
        return Decision(state)
    gate = version.gate
    known = KnownVersion(
        ref=version.ref,
        verdict=gate.verdict if gate else None,
        gated_against=gate.gated_against if gate else None,
    )
    state = state.model_copy(update={"versions": state.versions | {name: known}})
    if state.record is not None:
        return _promote_if_passed(state, state.record, name, now_ms)
    if version.ref.kind != "base":
        return Decision(state)
    reason = f"{name} is the line's base; it serves until a better version is found"
    return _publish(state, "adopt_base", version.ref, reason, now_ms)


def _promote_if_passed(state: LineState, record: RolloutRecord, name: str, now_ms: int) -> Decision:
    known = state.versions[name]
    if known.verdict != "passed" or known.gated_against != record.stable.version:
        return Decision(state)
    if record.paused:
        return Decision(state.model_copy(update={"waiting": name}))
    reason = f"{name} passed the gate against {record.stable.version}; policy direct"
    return _publish(state.model_copy(update={"waiting": None}), "promote", known.ref, reason, now_ms)


def on_command(state: LineState, command: Command, now_ms: int) -> Decision:
    """Execute an operator's command.

    Raises `Rejected` or `UnknownVersion` with the remedy if that is not possible.
    """
    record = state.record
    if record is None:
        raise Rejected(f"line {state.line} has no base yet: start its trainer, which publishes it")
    by = f"by {command.issued_by}"
    if isinstance(command, Promote):
        known = _find(state, command.version)
        _require_passed(known)
        return _publish(state, "promote", known.ref, f"promoted {by}", now_ms, command.command_id)
    if isinstance(command, Rollback):
        target = _rollback_target(state, record, command)
        return _publish(state, "rollback", target, f"rolled back {by}", now_ms, command.command_id)
    if isinstance(command, Pin):
        known = _find(state, command.version)
        reason = f"pinned {by}; verdict {known.verdict or 'none (base)'}"
        return _publish(state, "pin", known.ref, reason, now_ms, command.command_id, paused=True)
    if command.kind == "pause":
        reason = f"paused {by}"
        return _publish(state, "pause", record.stable, reason, now_ms, command.command_id, paused=True)
    if command.kind == "resume":
        return _resume(state, record, now_ms, command.command_id, by)
    raise Rejected(f"the rollout does not execute `{command.kind}`")


def _resume(state: LineState, record: RolloutRecord, now_ms: int, command_id: str, by: str) -> Decision:
    """End a pause. Promote the version that it held back, if that was gated against the current stable version."""
    name = state.waiting
    known = state.versions.get(name) if name else None
    if known is None or known.gated_against != record.stable.version:
        return _publish(state, "resume", record.stable, f"resumed {by}", now_ms, command_id)
    state = state.model_copy(update={"waiting": None})
    reason = f"resumed {by}; {name} passed the gate against {record.stable.version} during the pause"
    return _publish(state, "promote", known.ref, reason, now_ms, command_id, paused=False)


def _rollback_target(state: LineState, record: RolloutRecord, command: Rollback) -> VersionRef:
    if command.version is None:
        if record.previous is None:
            raise Rejected(
                f"{record.stable.version} is the first stable version of the line; there is nothing before it"
            )
        return record.previous
    known = _find(state, command.version)
    _require_passed(known)
    return known.ref


def _find(state: LineState, name: str) -> KnownVersion:
    known = state.versions.get(name)
    if known is None:
        raise UnknownVersion(f"line {state.line} has no version {name}; `loopwright versions` lists them")
    return known


def _require_passed(known: KnownVersion) -> None:
    if known.verdict in (None, "passed"):
        return
    raise Rejected(
        f"{known.ref.version} did not pass the gate ({known.verdict}): "
        "read its gate report, and pin it to serve it anyway"
    )


def _publish(
    state: LineState,
    action: Action,
    stable: VersionRef,
    reason: str,
    now_ms: int,
    command_id: str | None = None,
    *,
    paused: bool | None = None,
) -> Decision:
    """Return the decision with the line's next record. `paused` None keeps a pause, except that `resume` ends it."""
    before = state.record
    if paused is None:
        paused = before is not None and before.paused and action != "resume"
    previous = before.previous if before else None
    if before is not None and before.stable.version != stable.version:
        previous = before.stable
    record = RolloutRecord(
        line=state.line,
        seq=before.seq + 1 if before else 1,
        action=action,
        stable=stable,
        previous=previous,
        paused=paused,
        reason=reason[:1024],
        command_id=command_id,
        decided_at=from_ms(now_ms),
    )
    return Decision(
        state.model_copy(update={"record": record}), record, f"{stable.version} serves (seq {record.seq})"
    )
