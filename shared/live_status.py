"""Live status of the trainer: JSON in Redis, written by the trainer and read by the console.

Redis may lose these records at any moment. The trainer writes them again within seconds, and a reader treats a record
that is missing or unreadable as "not known". The keys are in `shared/adapters/redis_keys.py`.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError


class LiveStatus(BaseModel):
    """Base of the records. Unknown fields are ignored, so a newer trainer does not hide its status from the console."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    updated_at: AwareDatetime = Field(description="When the trainer wrote this record.")

    def to_json(self) -> bytes:
        """Return the value to store in Redis."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def from_json(cls, value: bytes | None) -> Self | None:
        """Return the record, or None if `value` is missing or unreadable."""
        if value is None:
            return None
        try:
            return cls.model_validate_json(value)
        except ValidationError:
            return None


class RunProgress(LiveStatus):
    """Progress of the line's newest training run."""

    run_id: str = Field(
        description="The run; a reproduction is named after the version that it trains again."
    )
    stage: str = Field(
        description="A `RunStage` value. The gate appends what it is evaluating: `gate, candidate: answers`."
    )
    step: int = Field(0, ge=0, description="Steps finished within this stage.")
    steps: int = Field(
        0, ge=0, description="Steps of this stage in total; 0 if the stage does not count steps."
    )
    share: FiniteFloat = Field(
        0.0, ge=0, description="`step / steps`, or 0 if the stage does not count steps."
    )
    loss: FiniteFloat | None = Field(None, description="Training loss of the last logged step.")
    tokens_per_s: FiniteFloat | None = Field(None, description="Training speed, in tokens per second.")
    eta_s: FiniteFloat | None = Field(None, description="Estimated time left in this stage, in seconds.")
    verdict: str | None = Field(None, description="Verdict of the gate, once the version is published.")
    version: str | None = Field(None, description="The version, once it is published.")
    reason: str | None = Field(
        None, description="Why the run waits, failed or was ended; or a note on this stage."
    )


class CollectedStatus(LiveStatus):
    """Usable data collected since the last run, measured against the threshold of the next run."""

    usable: int = Field(ge=0, description="Usable examples that are new since the last run.")
    needed: int = Field(ge=0, description="New usable examples that start a run.")
    users: int = Field(ge=0, description="Users behind the new usable examples.")
    users_needed: int = Field(ge=0, description="Users that have to be behind them.")
    examples: int = Field(ge=0, description="All examples collected for the line, usable or not.")
    held: dict[str, int] = Field(description="Examples in quarantine, by reason.")
    batches: int = Field(ge=0, description="Batches read from `training.batches`.")
    reason: str = Field(description="Why the trainer starts a run now, or why it does not.")
    device: str | None = Field(None, description="What runs compute on, once that has been checked.")
    device_problem: str | None = Field(
        None, description="Why runs cannot use the device, with the remedy; no run starts meanwhile."
    )


class QuarantinedEvent(NamedTuple):
    """A feedback event that an operator can release from quarantine; a JSON array of three strings."""

    response_id: str
    event_id: str
    reason: str


class QuarantineStatus(LiveStatus):
    """Events in quarantine that an operator can release. Ids and reasons only, never texts."""

    held: tuple[QuarantinedEvent, ...] = Field(
        description="The first of them; at most as many as one command releases."
    )
    total: int = Field(ge=0, description="How many there are.")
