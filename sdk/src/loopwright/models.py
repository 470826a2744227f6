"""Responses of the services. Unknown fields are kept in `model_extra`, so a newer service loses none of its fields."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

CommandKind = Literal[
    "promote",
    "rollback",
    "pause",
    "resume",
    "pin",
    "train_now",
    "export_dataset",
    "release",
    "reproduce",
    "gate_again",
    "collect_garbage",
    "replay",
    "skip",
]
"""Kinds of operator commands. A deployment rejects kinds that none of its services executes."""


class ResponseModel(BaseModel):
    """Base class of the responses. They are immutable."""

    model_config = ConfigDict(frozen=True, extra="allow")


# --- feedback service -----------------------------------------------------------------------------------------------


class Accepted(ResponseModel):
    """Acknowledgement of a feedback event that is stored durably in the log."""

    event_id: str
    """Id of the event."""
    status: Literal["accepted", "duplicate"]
    """`duplicate` if the same event was sent before. It counts once."""
    actionable: bool = True
    """Whether a model can be trained on the event."""
    hint: str | None = None
    """How to make the event actionable, if it is not."""


class Recorded(ResponseModel):
    """Acknowledgement of a response that is stored durably in the log."""

    response_id: str
    """Id of the response."""
    status: Literal["accepted"]
    """Always `accepted`."""


class RowResult(ResponseModel):
    """What became of one row of a bulk request."""

    line: int
    """Position of the row, from 1."""
    status_code: int
    """HTTP status that a single request would have got. With 429 and 503 the row can be accepted later."""
    status: Literal["accepted", "duplicate", "valid"] | None = None
    """`valid`: a dry run found no fault. None if the row was refused."""
    event_id: str | None = None
    """Id of the event, in rows of feedback."""
    response_id: str | None = None
    """Id of the response, in rows of responses."""
    actionable: bool = True
    """Whether a model can be trained on the event."""
    hint: str | None = None
    """How to make the event actionable, if it is not."""
    code: str | None = None
    """Stable identifier of the error, if the row was refused."""
    detail: str | None = None
    """What is wrong with the row, and what to do."""

    @property
    def is_refused(self) -> bool:
        """Return whether the row was not accepted."""
        return self.status_code >= 400


class Receipt(ResponseModel):
    """Outcome of one feedback event, followed to its batch, version and serving state."""

    response_id: str
    """Id of the response that the event is about."""
    event_id: str
    """Id of the event."""
    outcome: str
    """Outcome of the event, for example `batched` or `superseded`; `pending` if it has none yet."""
    batch_id: str | None = None
    """The batch that contains the event's example."""
    run_id: str | None = None
    """The run that trained `version`."""
    version: str | None = None
    """The first version whose dataset includes the batch and that passed the gate; if none passed, the first one."""
    verdict: str | None = None
    """The gate's verdict on `version`: `passed`, `failed` or `inconclusive`."""
    serving: bool = False
    """Whether a version whose dataset includes the batch serves users now."""
    serving_version: str | None = None
    """That serving version."""
    reason: str | None = None
    """Why the event was refused, if the outcome is `refused`: `conflict`, `not_yours`, `too_many`, `too_large`,
    `response_late` or `unusable`."""
    remedy: str | None = None
    """What to do about the outcome, if anything can be done."""
    stage: str
    """The outcome; a batched event moves on to `trained`, `published`, `ordered`, `canary` and `serving`, or to
    `rolled_back`."""
    detail: str = ""
    """The same in a sentence."""


class Erasure(ResponseModel):
    """Progress of the erasure of one user's data."""

    request_id: str
    """Id of the request."""
    subject: str
    """The user's pseudonym."""
    status: Literal["requested", "in_processor", "in_trainer", "done"]
    """`requested`: the request is in the log. `in_processor`: some partitions have erased the data. `in_trainer`: all
    partitions have. `done`: so have the trainers."""
    line: str = ""
    """Line of the request."""
    lines: tuple[str, ...] = ()
    """Lines whose batches had data of the user, and the request's."""
    issued_by: str | None = None
    """Name of the API key that requested it."""
    requested_at: datetime | None = None
    """When the erasure was requested."""
    deadline: datetime | None = None
    """By then, Kafka has deleted the last copies."""
    partitions_done: int = 0
    """Partitions that have erased the data."""
    partitions: int | None = None
    """Partitions in total; None if not known yet."""
    responses: int = 0
    """Responses that were erased from the processor."""
    signals: int = 0
    """Signals that were erased from the processor."""
    batches: int = 0
    """Batches that were rewritten without the data."""
    snapshots: int = 0
    """Dataset snapshots that the data was deleted from."""
    versions: tuple[str, ...] = ()
    """Versions that were trained on the data. They remain unchanged."""
    completed_at: datetime | None = None
    """When the erasure was done."""
    overdue: bool = False
    """Whether the deadline passed before the erasure was done."""
    detail: str = ""
    """The same in a sentence."""


class CertificateSignature(ResponseModel):
    """Ed25519 signature over the canonical JSON of a certificate: sorted keys, no spaces, UTF-8."""

    algorithm: Literal["Ed25519"]
    """Always `Ed25519`."""
    public_key: str
    """The key that signed it, as 64 hex digits."""
    value: str
    """The signature, as 128 hex digits."""


class SignedCertificate(ResponseModel):
    """Certificate of a finished erasure. `loopwright.certificates.verify` checks it."""

    certificate: dict[str, Any]
    """What was erased: topics, batches, snapshots, versions and dates, as it was signed."""
    signature: CertificateSignature
    """The signature."""


class CertificateKey(ResponseModel):
    """The key that verifies a deployment's certificates."""

    public_key: str
    """64 hex digits."""


# --- console --------------------------------------------------------------------------------------------------------


class ReplicaCounts(ResponseModel):
    """What the replicas of inference report about the stable version of a line."""

    live: int = 0
    """Replicas that have reported within the last minute."""
    serving: int = 0
    """How many of them serve the stable version."""
    canary: int = 0
    """How many of them serve the canary."""
    refused: str | None = None
    """Why replicas refuse the stable version or the canary, if one does."""


class Serving(ResponseModel):
    """The version that a line should serve, from its newest rollout record, and how many replicas serve it."""

    version: str
    """The stable version."""
    seq: int
    """Number of the rollout record. It increases with every decision."""
    since: datetime
    """When the decision was made."""
    reason: str
    """Why it was made."""
    canary: str | None = None
    """The version that is being tried on a share of the users."""
    share: float = 0.0
    """Share of users that the canary serves, from 0 to 1."""
    paused: bool = False
    """Whether automatic promotions are paused."""
    waiting: str | None = None
    """A version that passed its gate and waits: until promotions are resumed, or for a new gate."""
    earlier: tuple[str, ...] = ()
    """The versions to which repeated rollbacks return, newest first."""
    replicas: ReplicaCounts = ReplicaCounts()
    """What the replicas report."""


class CanaryArm(ResponseModel):
    """Users of one version in the present step of a canary. Each user counts once."""

    version: str
    """The version."""
    seen: int
    """Users with a response."""
    users: int
    """Users with feedback."""
    mean: float | None = None
    """Their mean satisfaction, from 0 to 1."""
    low: float
    """Lower end of its 95 % interval, which is valid at every look."""
    high: float
    """Upper end of that interval."""
    failed: float | None = None
    """Share of the sampled requests that failed."""
    latency_ms: float | None = None
    """Typical latency of the sampled requests."""


class CanaryTest(ResponseModel):
    """Figures of the present step of a canary."""

    share: float
    """Share of the users who get the canary."""
    step_began_at: datetime
    """When the step began."""
    deadline_at: datetime
    """When an inconclusive canary is paused."""
    canary: CanaryArm
    """Users of the canary."""
    stable: CanaryArm
    """Users of the stable version."""
    harm_p: float
    """p-value of: the canary is at least as good. It is rolled back at `harm_alpha`."""
    harm_alpha: float
    """Level of that test."""
    promotion_p: float
    """p-value of: the canary is worse by at least `margin`. In the last step, it takes over at `promotion_alpha`."""
    promotion_alpha: float
    """Level of that test."""
    margin: float
    """Largest loss of satisfaction with which the canary takes over."""


class RolloutState(ResponseModel):
    """What serves a line, and the canary that is tried or was tried last."""

    line: str
    """The line."""
    seq: int
    """Number of the newest rollout record."""
    action: str
    """What it did, for example `canary` or `rollback`."""
    reason: str
    """Why, with figures."""
    decided_at: datetime
    """When."""
    stable: str
    """The stable version."""
    canary: str | None = None
    """The version that is tried; None if there is none."""
    share: float = 0.0
    """Share of the users who get it."""
    paused: bool = False
    """Whether automatic promotions are paused."""
    waiting: str | None = None
    """A version that passed its gate and waits."""
    replicas: ReplicaCounts = ReplicaCounts()
    """What the replicas report."""
    waits_for: tuple[str, ...] = ()
    """What the canary needs for its next step."""
    test: CanaryTest | None = None
    """Figures of the present step or, if there is no canary, of the decision that ended the last one."""
    points: tuple[dict[str, Any], ...] = ()
    """The intervals of both arms over time."""


class Status(ResponseModel):
    """State of the loop. `model_extra` has further fields, for example `run`, the progress of the newest run."""

    line: str
    """The line."""
    serving: Serving | None = None
    """The version that serves; None before the line's first rollout record."""
    ledger: dict[str, int] = {}
    """Number of feedback events by outcome."""
    ledger_since: datetime | None = None
    """Since when `ledger`, `refused`, `accepted` and `pending` are; None if the log still has everything."""
    refused: dict[str, int] = {}
    """Number of events with the outcome `refused`, by reason."""
    refused_responses: dict[str, int] = {}
    """Number of recorded responses that were refused, by reason."""
    accepted: int | None = None
    """Feedback events in the log; None if Kafka was not reachable."""
    pending: int | None = None
    """Feedback events without an outcome; None if Kafka was not reachable."""


class Figure(ResponseModel):
    """A value measured by the gate, with its confidence interval."""

    name: str
    """Name of the figure, for example `win_rate`."""
    n: int
    """Sample size."""
    value: float | None = None
    """Measured value of the version."""
    low: float | None = None
    """Lower end of the confidence interval."""
    high: float | None = None
    """Upper end of the confidence interval."""
    baseline: float | None = None
    """Value of the version that it was compared with."""
    bound: float | None = None
    """Value that `low` (or `value`) had to reach. None if the figure is informational."""
    passed: bool | None = None
    """Whether the bound was reached. None if there is no bound or not enough data."""


class Version(ResponseModel):
    """A version of a line. The base has no run and no verdict."""

    version: str
    """Name, for example `assistant@v3-1f2e3d4c`."""
    kind: str | None = None
    """`base` or `lora`."""
    number: int | None = None
    """Number within the line."""
    run_id: str | None = None
    """The run that trained it."""
    verdict: str | None = None
    """The gate's verdict: `passed`, `failed` or `inconclusive`."""
    reasons: tuple[str, ...] = ()
    """Reasons for the verdict."""
    gated_against: str | None = None
    """The version that the gate compared it with."""
    figures: tuple[Figure, ...] = ()
    """What the gate measured."""
    serving: bool = False
    """Whether a replica reports that it serves it now, as stable version or canary."""
    created_at: datetime | None = None
    """When it was published."""


class Command(ResponseModel):
    """Acknowledgement of a command that is stored durably in the log."""

    command_id: str
    """Id of the command, with which its result is queried."""


class BrowserToken(ResponseModel):
    """A token with which a page may send feedback on one response."""

    token: str
    """Give it to the page, which sends it as `Authorization: Bearer ...`."""
    response_id: str
    """The response."""
    expires_at: datetime
    """When it expires."""


class CommandResult(ResponseModel):
    """Result of a command."""

    command_id: str
    """Id of the command."""
    status: Literal["done", "refused", "failed"]
    """`refused` if the command is not applicable, `failed` if its execution failed."""
    message: str = ""
    """The effect, or why there is none."""
    issued_by: str | None = None
    """Name of the API key that sent it; `operator` where no keys are used."""
    executor: str | None = None
    """The service that executed the command."""
    finished_at: datetime | None = None
    """When it finished."""
    replayed: int | None = None
    """Number of dead letters that were replayed. Only for the kind `replay`."""


class QuarantinedEvent(ResponseModel):
    """A feedback event that a check keeps out of training, and that an operator can release."""

    response_id: str
    """Id of the response."""
    event_id: str
    """Id of the event."""
    reason: str
    """The check, a colon, and what it detected."""


class Quarantine(ResponseModel):
    """The events of a line that are quarantined and can be released."""

    held: tuple[QuarantinedEvent, ...]
    """The first 1000 events."""
    total: int | None = None
    """Number of events; None if not known, because the trainer has not reported yet."""
    updated_at: datetime | None = None
    """When the trainer reported."""


class DeadLetter(ResponseModel):
    """A record that could not be processed: its origin and the error."""

    position: str
    """Identifies the dead letter: `<partition>-<offset>`."""
    at: datetime
    """When the record failed."""
    error_class: str
    """Class of the error, for example `malformed`."""
    message: str = ""
    """Message of the error."""
    service: str = ""
    """The service that failed to process the record."""
    topic: str
    """The record's original topic."""
    partition: int | None = None
    """Its original partition."""
    offset: int | None = None
    """Its original offset."""
    appended_at: datetime | None = None
    """When it was written to the original topic."""
    bytes: int = 0
    """Size of its key and value."""
    omitted: bool = False
    """Whether its content was too large to keep."""
    replayed_from: str | None = None
    """The dead letter that the record was replayed from before it failed again."""
    replay_count: int = 0
    """How often the record has been replayed so far."""
    replayed_by: str | None = None
    """The command that replayed this dead letter."""


class RecordContent(ResponseModel):
    """Key, value or header of a record."""

    encoding: Literal["text", "hex"]
    """`text` if the content is UTF-8, else `hex`."""
    data: str
    """The content, encoded."""
    bytes: int
    """Size of the complete content."""
    truncated: bool = False
    """Whether `data` is only the beginning."""


class DeadLetterContent(DeadLetter):
    """A dead letter with the content of its record."""

    key: RecordContent | None = None
    """The record's key."""
    value: RecordContent | None = None
    """The record's value."""
    headers: tuple[tuple[str, RecordContent | None], ...] = ()
    """Name and value of the record's headers."""


class DeadLetterPage(ResponseModel):
    """One page of dead letters, newest first."""

    dead_letters: tuple[DeadLetter, ...] = ()
    """The dead letters."""
    next: str | None = None
    """Cursor of the next page; None if this is the last one. A page may be short although there is a next one."""


# --- trainer --------------------------------------------------------------------------------------------------------


class GateTest(ResponseModel):
    """Test of whether a version is better than another one, on the items of held-out users."""

    wins: int
    """Items that the version won."""
    losses: int
    """Items that it lost."""
    ties: int
    """Items that neither won."""
    users: int
    """Users who have an item."""
    groups: int
    """Different questions."""
    p_users: float
    """p-value over users, one vote each."""
    p_groups: float
    """p-value over questions, one vote each. The larger p-value counts."""


class GateResult(ResponseModel):
    """The gate's verdict on a version, with reasons and figures."""

    verdict: str
    """`passed`, `failed` or `inconclusive`."""
    reasons: tuple[str, ...] = ()
    """Reasons for the verdict."""
    figures: tuple[Figure, ...] = ()
    """What the gate measured."""
    gated_against: str | None = None
    """The version that it was compared with."""
    more_items: int | None = None
    """Estimated number of additional held-out items that would make the result conclusive."""
    seconds: float = 0.0
    """Duration of the evaluation, in seconds."""
    look: int = 1
    """Which gate of the line since its last promotion this is, counted from 1."""
    alpha: float | None = None
    """Significance level of this gate; None if there was too little to test."""
    test: GateTest | None = None
    """The version against the stable version."""
    control_state: str = "not_run"
    """`passed`, `not_passed` or `not_run`: the comparison with a control that was trained on permuted answers."""
    control: GateTest | None = None
    """The version against the control."""


class GateReport(ResponseModel):
    """The gate's report on a version. The examples are users' text and are returned only if the trainer allows it."""

    version: str
    """The version."""
    run_id: str | None = None
    """The run that trained it."""
    report: GateResult
    """Verdict, reasons and figures."""
    items: tuple[dict[str, Any], ...] = ()
    """Answers to held-out users' questions."""
    pairs: tuple[dict[str, Any], ...] = ()
    """Preference pairs."""
    general: tuple[dict[str, Any], ...] = ()
    """Answers to general prompts."""
    safety: tuple[dict[str, Any], ...] = ()
    """Answers to harmful and harmless prompts."""
    golden: tuple[dict[str, Any], ...] = ()
    """Answers to the operator's own prompts."""
    without: str | None = None
    """Why the report has no examples, if it has none."""


class LineageEvent(ResponseModel):
    """A feedback event that a version was trained on."""

    event_id: str
    """Id of the event."""
    kind: str
    """Kind of feedback."""
    user: str
    """The user's pseudonym."""


class LineageResponse(ResponseModel):
    """A response and its events that a version was trained on."""

    response_id: str
    """Id of the response."""
    revision: int
    """Revision of the example."""
    events: tuple[LineageEvent, ...] = ()
    """The events."""


class LineageBatch(ResponseModel):
    """A batch and its responses that a version was trained on."""

    batch_id: str | None = None
    """Id of the batch; None if the batch is no longer known."""
    users: int = 0
    """Number of users."""
    events: int = 0
    """Number of events."""
    responses: tuple[LineageResponse, ...] = ()
    """The responses."""


class Lineage(ResponseModel):
    """What a version was trained on. `model_extra` has further fields, for example `erasures`."""

    version: str
    """The version."""
    kind: str = ""
    """`base` or `lora`."""
    base: str = ""
    """The line's base version."""
    base_model: str = ""
    """Name of the base model."""
    verdict: str | None = None
    """The gate's verdict: `passed`, `failed` or `inconclusive`."""
    role: str | None = None
    """`stable` or `canary`, as the newest rollout record orders it, or None if it is to serve no user."""
    reproducible: bool
    """Whether the version can be trained again from its snapshot."""
    why_not_reproducible: tuple[str, ...] = ()
    """Reasons why it cannot."""
    run: dict[str, Any] | None = None
    """The run that trained it."""
    dataset: dict[str, Any] | None = None
    """The dataset snapshot as it was published: digest, examples, users, tokens."""
    counts: dict[str, Any] = {}
    """Numbers of events, responses and users in the snapshot's remaining rows."""
    batches: tuple[LineageBatch, ...] = ()
    """The batches of the snapshot's remaining rows."""
    detail: str = ""
    """A note, for example that this is the base."""


class TraceRun(ResponseModel):
    """What one run did with an event."""

    run_id: str
    """The run."""
    stage: str = ""
    """Stage of the run."""
    state: str
    """`trained`, `measured` (the user is held out), `held` (in quarantine), `erased`, `not_used`, `not_read` or
    `not_known`."""
    reason: str = ""
    """Why, if that is not obvious."""
    version: str | None = None
    """The version that the run published."""
    verdict: str | None = None
    """The gate's verdict on that version."""
    role: str | None = None
    """`stable` or `canary`, as the newest rollout record orders it, or None if it is to serve no user."""


class TraceResponse(ResponseModel):
    """An event of one response, and the runs that read it."""

    response_id: str
    """Id of the response."""
    kind: str | None = None
    """Kind of feedback."""
    user: str | None = None
    """The user's pseudonym."""
    now: str = ""
    """Whether the event can train now, or the check that keeps it out."""
    batches: tuple[dict[str, Any], ...] = ()
    """The batches that contain the event."""
    runs: tuple[TraceRun, ...] = ()
    """The runs."""


class Trace(ResponseModel):
    """The runs and versions that an event reached."""

    event_id: str
    """Id of the event."""
    responses: tuple[TraceResponse, ...] = ()
    """The responses that have an event with this id; usually one."""
    detail: str | None = None
    """Why there are no responses, if there are none."""


class Diff(ResponseModel):
    """Differences between two versions."""

    one: dict[str, Any]
    """The first version: name, base, verdict, and the version that the gate compared it with."""
    other: dict[str, Any]
    """The second version, likewise."""
    same_base: bool
    """Whether both have the same base."""
    recipe: dict[str, Any] = {}
    """Differing settings of the recipe: name -> values in the first and in the second version."""
    software: dict[str, Any] = {}
    """Differing software and hardware, likewise."""
    dataset: dict[str, Any] = {}
    """Differing properties of the dataset, likewise."""
    rows: dict[str, Any] = {}
    """Training rows that were added, removed or changed: counts, and the ids of the first ones."""
    figures: tuple[dict[str, Any], ...] = ()
    """The gate's figures on both versions, by name."""
