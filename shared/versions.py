"""The records of versions, rollout and operator commands (design sections 4, 6 and 7)."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from shared.events import Digest, Id, LogRecord, Part, VersionName

Verdict = Literal["passed", "failed", "inconclusive"]


def version_name(line: str, number: int | None, digest: str) -> str:
    """`<line>@v<N>-<digest8>`; the base (number None) is `<line>@base-<digest8>`."""
    return f"{line}@{'base' if number is None else f'v{number}'}-{digest[:8]}"


def batch_name(line: str, partition: int, number: int) -> str:
    """`<line>-<partition>-<number>`: numbers count up from 1 per line and partition, without gaps."""
    return f"{line}-{partition}-{number}"


def batch_position(batch_id: str) -> tuple[int, int]:
    """(partition, number) of a batch id made by `batch_name`."""
    _, partition, number = batch_id.rsplit("-", 2)
    return int(partition), int(number)


class VersionRef(Part):
    """Enough to fetch, verify and serve a version. `uri` is empty for the base: each side loads its own copy."""

    version: VersionName
    kind: Literal["base", "lora", "full"]
    uri: str = ""
    digest: Digest


class Figure(Part):
    """One measured figure with its interval. `baseline` is the same figure for the version gated against."""

    name: str
    n: int = Field(ge=0)
    value: float | None = None
    low: float | None = None
    high: float | None = None
    baseline: float | None = None
    bound: float | None = Field(
        None, description="what `low` (or `value`) had to reach; absent = for information"
    )
    passed: bool | None = None


class GateReport(Part):
    """The offline test before any user sees a version. Holds figures, never user text."""

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    gated_against: VersionName
    more_items: int | None = Field(
        None,
        ge=0,
        description="about how many more held-out items would decide: an estimate, where it is known",
    )
    seconds: float = Field(0.0, ge=0)


class DatasetRef(Part):
    """The snapshot a version was trained from, by content."""

    digest: Digest
    examples: int = Field(ge=0)
    users: int = Field(ge=0)
    through: dict[str, int] = Field(
        default_factory=dict,
        description="partition -> highest batch number read; batches are numbered without gaps",
    )
    tokens: int = Field(0, ge=0)

    def holds(self, batch_id: str) -> bool:
        """Whether the batch was read for this snapshot."""
        partition, number = batch_position(batch_id)
        return self.through.get(str(partition), 0) >= number


class ModelVersion(LogRecord):
    """One immutable, content-addressed version, published at most once and only complete."""

    event_type = "loopwright.version"
    ref: VersionRef
    number: int | None = Field(None, ge=1, description="absent for the base")
    base: VersionName
    base_model: str = Field(description="the Hugging Face id or folder name of the base, for people")
    run_id: Id | None = None
    dataset: DatasetRef | None = None
    gate: GateReport | None = None
    reproducible: bool = True
    created_at: AwareDatetime


class RolloutRecord(LogRecord):
    """The desired state of a line. `seq` only grows; the newest record is the truth."""

    event_type = "loopwright.rollout"
    seq: int = Field(ge=1)
    action: Literal["adopt_base", "promote", "rollback", "canary", "pause", "resume", "pin"]
    stable: VersionRef
    previous: VersionRef | None = Field(None, description="the stable before this one: where a rollback goes")
    canary: VersionRef | None = None
    share: float = Field(0.0, ge=0, le=1)
    paused: bool = False
    reason: str = Field(min_length=1, max_length=1024)
    command_id: Id | None = None
    decided_at: AwareDatetime
