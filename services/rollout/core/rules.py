"""The rules of one line: what a new version or a person's command makes of its state. Pure.

`policy: direct`: a version that passed the gate against the present stable takes over at once. A version gated against
another is not promoted: what it was compared with no longer serves. Nothing but a pin lets a version serve that did not
pass (I10).
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


class Known(Part):
    """A published version, as far as the rollout needs it. The base has no verdict: it is where a line begins."""

    ref: VersionRef
    verdict: Verdict | None = None
    gated_against: str | None = None


class LineState(Part):
    """All that is known of one line. `record` is its newest rollout record; None until its base is known."""

    line: str
    record: RolloutRecord | None = None
    versions: dict[str, Known] = Field(default_factory=dict)
    waiting: str | None = Field(None, description="newest passed version that a pause holds back")


@dataclass(frozen=True, slots=True)
class Decision:
    """The line afterwards, the record to publish if there is one, and what to tell the person who asked."""

    state: LineState
    record: RolloutRecord | None = None
    message: str = ""


def on_version(state: LineState, version: ModelVersion, now_ms: int) -> Decision:
    """A version was published."""
    name = version.ref.version
    if name in state.versions:
        return Decision(state)
    gate = version.gate
    known = Known(
        ref=version.ref,
        verdict=gate.verdict if gate else None,
        gated_against=gate.gated_against if gate else None,
    )
    state = state.model_copy(update={"versions": state.versions | {name: known}})
    if state.record is None:
        if version.ref.kind != "base":
            return Decision(state)
        return _move(
            state,
            "adopt_base",
            version.ref,
            f"{name} is the line's base: it serves until better is found",
            now_ms,
        )
    return _consider(state, name, now_ms)


def _consider(state: LineState, name: str, now_ms: int) -> Decision:
    """Whether a version takes over by itself."""
    known, record = state.versions[name], state.record
    if record is None or known.verdict != "passed" or known.gated_against != record.stable.version:
        return Decision(state)
    if record.paused:
        return Decision(state.model_copy(update={"waiting": name}))
    reason = f"{name} passed the gate against {record.stable.version}; policy direct"
    return _move(state.model_copy(update={"waiting": None}), "promote", known.ref, reason, now_ms)


def on_command(state: LineState, command: Command, now_ms: int) -> Decision:
    """A person decided. Raises `Rejected` or `UnknownVersion` with what to do instead."""
    record = state.record
    if record is None:
        raise Rejected(f"line {state.line} has no base yet: start its trainer, which announces it")
    by = f"by {command.issued_by}"
    if isinstance(command, Promote):
        known = _find(state, command.version)
        _require_passed(known)
        return _move(state, "promote", known.ref, f"promoted {by}", now_ms, command.command_id)
    if isinstance(command, Rollback):
        target = _rollback_target(state, record, command)
        return _move(state, "rollback", target, f"rolled back {by}", now_ms, command.command_id)
    if isinstance(command, Pin):
        known = _find(state, command.version)
        reason = f"pinned {by}; verdict {known.verdict or 'none: the base'}"
        return _move(state, "pin", known.ref, reason, now_ms, command.command_id, paused=True)
    if command.kind == "pause":
        return _move(state, "pause", record.stable, f"paused {by}", now_ms, command.command_id, paused=True)
    if command.kind == "resume":
        return _resume(state, record, now_ms, command.command_id, by)
    raise Rejected(f"the rollout does not carry out {command.kind}")


def _resume(state: LineState, record: RolloutRecord, now_ms: int, command_id: str, by: str) -> Decision:
    """Goes on, at once with the version that a pause held back, if it was gated against what serves now."""
    name = state.waiting
    known = state.versions.get(name) if name else None
    if known is None or known.gated_against != record.stable.version:
        return _move(state, "resume", record.stable, f"resumed {by}", now_ms, command_id)
    state = state.model_copy(update={"waiting": None})
    reason = f"resumed {by}: {name} had passed the gate against {record.stable.version} and waited"
    return _move(state, "promote", known.ref, reason, now_ms, command_id, paused=False)


def _rollback_target(state: LineState, record: RolloutRecord, command: Rollback) -> VersionRef:
    if command.version is None:
        if record.previous is None:
            raise Rejected(
                f"{record.stable.version} is the first stable of the line: there is nothing before it"
            )
        return record.previous
    known = _find(state, command.version)
    _require_passed(known)
    return known.ref


def _find(state: LineState, name: str) -> Known:
    known = state.versions.get(name)
    if known is None:
        raise UnknownVersion(f"line {state.line} has no version {name}; `loopwright versions` lists them")
    return known


def _require_passed(known: Known) -> None:
    if known.verdict in (None, "passed"):
        return
    raise Rejected(
        f"{known.ref.version} did not pass the gate ({known.verdict}); "
        "read its report, and pin it if it is to serve all the same"
    )


def _move(
    state: LineState,
    action: Action,
    stable: VersionRef,
    reason: str,
    now_ms: int,
    command_id: str | None = None,
    *,
    paused: bool | None = None,
) -> Decision:
    """The next record. `paused` None leaves it as it is, but `resume` ends it."""
    before = state.record
    held = (before.paused if before else False) if paused is None else paused
    changed = before is not None and before.stable.version != stable.version
    record = RolloutRecord(
        line=state.line,
        seq=before.seq + 1 if before else 1,
        action=action,
        stable=stable,
        previous=before.stable if before and changed else (before.previous if before else None),
        paused=False if action == "resume" else held,
        reason=reason[:1024],
        command_id=command_id,
        decided_at=from_ms(now_ms),
    )
    return Decision(
        state.model_copy(update={"record": record}), record, f"{stable.version} serves (seq {record.seq})"
    )
