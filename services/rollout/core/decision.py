"""State of one line, and what a decision about it changes and publishes. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import Field

from shared.events import Part, from_ms
from shared.versions import MAX_HISTORY, RolloutRecord, Verdict, VersionRef

Action = Literal["adopt_base", "promote", "rollback", "canary", "pause", "resume", "pin", "hold"]
MAX_REASON: Final = 1024


class KnownVersion(Part):
    """What the rollout needs of a published version. A base has no verdict: a line starts with it."""

    ref: VersionRef
    verdict: Verdict | None = None
    gated_against: str | None = None
    gate_number: int = 0
    through: dict[int, int] = Field(
        default_factory=dict, description="Its data: partition -> highest batch number that was read."
    )
    users: int = Field(0, description="Users whose feedback it was trained on.")
    rolled_back: bool = Field(
        False, description="It was rolled back from and not promoted by a person since."
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
    cool_until_ms: int = Field(0, description="No canary starts before, because one was rolled back.")


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


def publish(
    state: LineState,
    action: Action,
    stable: VersionRef,
    history: tuple[VersionRef, ...],
    reason: str,
    now_ms: int,
    command_id: str | None = None,
    *,
    paused: bool = False,
    canary: VersionRef | None = None,
    share: float = 0.0,
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
        canary=canary,
        share=share if canary else 0.0,
        paused=paused,
        reason=reason[:MAX_REASON],
        command_id=command_id,
        decided_at=from_ms(now_ms),
    )
    return Decision(
        state.model_copy(update={"record": record}),
        record=record,
        message=f"{stable.version} serves (seq {record.seq})"
        + (f", and {canary.version} to {share:.0%} of the users" if canary else ""),
    )


def keep_serving(
    state: LineState,
    record: RolloutRecord,
    action: Action,
    reason: str,
    now_ms: int,
    command_id: str | None = None,
    *,
    paused: bool,
) -> Decision:
    """Publish a record that changes neither the stable version nor the canary and its share."""
    return publish(
        state,
        action,
        record.stable,
        record.history,
        reason,
        now_ms,
        command_id,
        paused=paused,
        canary=record.canary,
        share=record.share,
    )


def extend(
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


def is_allowed(ref: VersionRef, lookup: Lookup) -> bool:
    """Return whether a version may serve without a pin."""
    known = lookup(ref.version)
    return known is not None and known.may_serve


def history_after(
    record: RolloutRecord, next_stable: VersionRef, *, stable_may_serve: bool
) -> tuple[VersionRef, ...]:
    """Return the history after a promotion: the version that served is added, unless only a pin let it serve.

    The oldest entry, which is the base, stays when the history is full.
    """
    if record.stable.version == next_stable.version or not stable_may_serve:
        return record.history
    history = (record.stable, *record.history)
    return history if len(history) <= MAX_HISTORY else (*history[: MAX_HISTORY - 1], history[-1])


def was_paused_by_person(state: LineState, record: RolloutRecord) -> bool:
    """Return whether promotions are paused until `resume`, not only for the data of a rollback."""
    return record.paused and state.excluded is None
