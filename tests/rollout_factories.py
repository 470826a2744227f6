"""A line of the rollout for tests: the step over a real store, and users whose feedback reaches it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from services.rollout.core import store
from services.rollout.core.decision import LineState
from services.rollout.core.policy import CanaryPolicy
from services.rollout.core.step import RolloutStep
from services.rollout.core.trial import Trial
from shared.canary_assignment import user_point
from shared.commands import COMMAND, CommandResult, GateAgain
from shared.events import LogRecord, ResponseSample, Tally, from_ms
from shared.records import Output, Record
from shared.stream.state_store import MemoryStore
from shared.stream.write_buffer import WriteBuffer
from shared.topics import (
    FEEDBACK_TALLIES,
    MODEL_CANARY,
    MODEL_ROLLOUT,
    MODEL_VERSIONS,
    OPERATOR_COMMANDS,
    OPERATOR_RESULTS,
    RESPONSE_SAMPLES,
)
from shared.versions import (
    CanaryStatus,
    DatasetRef,
    GateReport,
    ModelVersion,
    RolloutRecord,
    VersionRef,
    version_name,
)

NOW = datetime(2026, 11, 1, tzinfo=UTC)
BASE = version_name("assistant", None, "b" * 64)


def digest(number: int) -> str:
    return f"{number:064x}"[::-1]


def name(number: int) -> str:
    return version_name("assistant", number, digest(number))


def base() -> ModelVersion:
    ref = VersionRef(version=BASE, kind="base", digest="b" * 64)
    return ModelVersion(line="assistant", ref=ref, base=BASE, base_model="tiny", created_at=NOW)


def trained(
    number: int,
    verdict: str | None = "passed",
    against: str = BASE,
    *,
    gate: int = 1,
    through: dict[str, int] | None = None,
) -> ModelVersion:
    ref = VersionRef(version=name(number), kind="lora", uri=f"artifact:{number}", digest=digest(number))
    report = GateReport(verdict=verdict, gated_against=against, number=gate) if verdict else None  # type: ignore[arg-type]
    dataset = DatasetRef(digest="d" * 64, examples=1, users=1, through=through) if through else None
    return ModelVersion(
        line="assistant", ref=ref, number=number, base=BASE, base_model="tiny", gate=report, dataset=dataset,
        created_at=NOW,
    )  # fmt: skip


class Line:
    """One line: the rollout's step over a real store, and the records that it published."""

    def __init__(self, *versions: LogRecord, policy: CanaryPolicy | None = None) -> None:
        self.policy = policy or CanaryPolicy()
        self.store = MemoryStore()
        self.now_ms = 1_760_000_000_000
        self.records: list[RolloutRecord] = []
        self.results: list[CommandResult] = []
        self.requests: list[GateAgain] = []
        self.statuses: list[CanaryStatus] = []
        for record in versions:
            self.publish(record)

    def publish(self, record: LogRecord) -> None:
        self.feed(MODEL_VERSIONS.name, record.to_json())

    def command(self, kind: str, command_id: str = "c1", **fields: Any) -> CommandResult | None:
        body = {"line": "assistant", "command_id": command_id, "kind": kind, "issued_at": NOW} | fields
        before = len(self.results)
        self.feed(OPERATOR_COMMANDS.name, COMMAND.validate_python(body).to_json())
        return self.results[-1] if len(self.results) > before else None

    def feed(self, topic: str, value: bytes | None) -> None:
        buffer = WriteBuffer(self.store, 1_000_000)
        buffer.savepoint()
        outputs: list[Output] = list(
            RolloutStep(self.policy)(buffer, Record(topic, 0, 0, self.now_ms, b"k", value))
        )
        self.store.apply(buffer.writes, 0)
        self.records += [RolloutRecord.from_json(o.value) for o in outputs if o.topic == MODEL_ROLLOUT.name]
        self.results += [
            CommandResult.from_json(o.value) for o in outputs if o.topic == OPERATOR_RESULTS.name
        ]
        self.statuses += [CanaryStatus.from_json(o.value) for o in outputs if o.topic == MODEL_CANARY.name]
        self.requests += [GateAgain.from_json(o.value) for o in outputs if o.topic == OPERATOR_COMMANDS.name]

    def all_items(self) -> list[tuple[bytes, bytes]]:
        return list(self.store.scan(b"", b"\xff" * 9))

    def all_keys(self) -> list[bytes]:
        return [key for key, _ in self.all_items()]

    def all_values(self) -> list[bytes]:
        return [value for _, value in self.all_items()]

    def state(self) -> LineState:
        return store.read_line(WriteBuffer(self.store, 1_000_000), "assistant")

    def was_rolled_back(self, version: str) -> bool:
        known = store.lookup(WriteBuffer(self.store, 1_000_000), "assistant")(version)
        return known is not None and known.rolled_back

    @property
    def stable(self) -> str:
        return self.records[-1].stable.version

    # --- users of a canary ---

    @property
    def record(self) -> RolloutRecord:
        return self.records[-1]

    def trial(self) -> Trial | None:
        watch = store.read_watch(WriteBuffer(self.store, 1_000_000), "assistant")
        return None if watch is None else watch.trial

    def version_of(self, user: str) -> str:
        record = self.record
        if record.canary is None:
            return record.stable.version
        point = user_point(user, "assistant", record.canary.version)
        return record.canary.version if point < record.share else record.stable.version

    def respond(
        self,
        user: str,
        version: str | None = None,
        *,
        failed: bool = False,
        latency_ms: float = 500.0,
        at_ms: int | None = None,
    ) -> None:
        sample = ResponseSample(
            line="assistant",
            version=version or self.version_of(user),
            user_id=user,
            failed=failed,
            latency_ms=latency_ms,
            responded_at=from_ms(self.now_ms if at_ms is None else at_ms),
        )
        self.feed(RESPONSE_SAMPLES.name, sample.to_json())

    def vote(
        self,
        user: str,
        vote: float,
        version: str | None = None,
        *,
        at_ms: int | None = None,
        partition: int = 0,
    ) -> None:
        tally = Tally(
            line="assistant",
            version=version or self.version_of(user),
            user_id=user,
            partition=partition,
            vote=vote,
            vote_on=from_ms(self.now_ms if at_ms is None else at_ms),
            updated_at=from_ms(self.now_ms),
        )
        self.feed(FEEDBACK_TALLIES.name, tally.to_json())

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
