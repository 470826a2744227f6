"""I7, I10, I12 when the rollout is killed at every step of a canary: decisions go on, and every user counts once.

Real Kafka and `python -m services.rollout`. The test writes what the processor publishes of simulated users.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.canary_assignment import user_point
from shared.commands import Pause
from shared.events import LogRecord, ResponseSample, Tally
from shared.kafka_connection import KafkaConnection
from shared.records import Output
from shared.topics import (
    DEAD_LETTERS,
    FEEDBACK_TALLIES,
    MODEL_ROLLOUT,
    MODEL_VERSIONS,
    OPERATOR_COMMANDS,
    RESPONSE_SAMPLES,
    Topic,
)
from shared.versions import GateReport, ModelVersion, RolloutRecord, VersionRef
from tests.brokers import own_kafka
from tests.integration.service_process import Service, running
from tests.integration.stream_rig import until

NOW = datetime(2026, 3, 4, tzinfo=UTC)
BASE = VersionRef(version="assistant@base-00000000", kind="base", digest="0" * 64)
V1 = VersionRef(version="assistant@v1-11111111", kind="lora", uri="file:///v1", digest="1" * 64)
PASSED = GateReport(verdict="passed", gated_against=BASE.version)
KILLS = 3
USERS_BETWEEN_KILLS = 60
DECIDED_WITHIN_S = 60.0


def version(ref: VersionRef, gate: GateReport | None = None) -> ModelVersion:
    return ModelVersion(
        line="assistant", ref=ref, base=BASE.version, base_model="tiny", gate=gate, created_at=NOW
    )


@dataclass
class Rig:
    """A broker, and one rollout process after the other on the same data folder."""

    kafka: str
    folder: Path
    env: dict[str, str]
    stack: ExitStack
    services: list[Service] = field(default_factory=list)
    users: int = 0

    def start(self) -> None:
        self.services.append(self.stack.enter_context(running("rollout", self.folder, self.env)))

    def kill(self) -> None:
        """Kill the process with SIGKILL, and start the next one."""
        child = self.services[-1].child
        os.kill(child.pid, signal.SIGKILL)
        child.wait(10)
        self.start()

    def write(self, writer: str, topic: Topic, records: Sequence[LogRecord]) -> None:
        publisher = KafkaPublisher(KafkaConnection(self.kafka), writer)
        for record in records:
            publisher.publish(Output(topic.name, b"k", record.to_json(), partition=0))
        assert publisher.flush(20) == 0
        publisher.close()

    def decisions(self) -> list[RolloutRecord]:
        return [RolloutRecord.from_json(value) for value in self.read(MODEL_ROLLOUT)]

    def read(self, topic: Topic) -> list[bytes | None]:
        reader = KafkaLogReader(KafkaConnection(self.kafka), "oracle", [topic.name])
        values = []
        while not reader.at_end():
            values += [record.value for record in reader.poll(0.2)]
        reader.close()
        return values

    def visit(
        self, share: float, count: int = USERS_BETWEEN_KILLS, canary_vote: float = 1.0
    ) -> dict[str, int]:
        """Write the samples and votes of new users, some of them twice. Return users by version.

        All are satisfied with the stable version; `canary_vote` is how satisfied they are with the canary.
        """
        now = datetime.now(UTC)
        samples: list[LogRecord] = []
        votes: list[LogRecord] = []
        seen: dict[str, int] = {BASE.version: 0, V1.version: 0}
        for number in range(self.users, self.users + count):
            user = f"u_{number:06d}"
            name = V1.version if user_point(user, "assistant", V1.version) < share else BASE.version
            seen[name] += 1
            sample = ResponseSample(
                line="assistant", version=name, user_id=user, failed=False, responded_at=now
            )
            liked = canary_vote if name == V1.version else 1.0
            vote = Tally(
                line="assistant",
                version=name,
                user_id=user,
                partition=0,
                vote=liked,
                vote_on=now,
                updated_at=now,
            )
            samples += [sample] * (1 + number % 2)
            votes += [vote] * (1 + number % 3)
        self.users += count
        self.write("processor", RESPONSE_SAMPLES, samples)
        self.write("processor", FEEDBACK_TALLIES, votes)
        return seen


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    with ExitStack() as stack:

        def make(**settings: str) -> Rig:
            kafka = stack.enter_context(own_kafka(tmp_path, partitions=2))
            env = {
                "KAFKA_BOOTSTRAP_SERVERS": kafka,
                "LOOPWRIGHT_PARTITIONS": "2",
                "LOOPWRIGHT_DATA_DIR": str(tmp_path / "services"),
                "LOOPWRIGHT_ROLLOUT_POLICY": "canary",
                "LOOPWRIGHT_ROLLOUT_CANARY_FEEDBACK_USERS": "0",
                "LOOPWRIGHT_ROLLOUT_CANARY_SETTLE_SECONDS": "0",
                **settings,
            }
            rig = Rig(kafka, tmp_path, env, stack)
            rig.start()
            rig.write("trainer", MODEL_VERSIONS, [version(BASE), version(V1, PASSED)])
            until(lambda: len(rig.decisions()) == 2, "the canary starts", DECIDED_WITHIN_S)
            return rig

        yield make


def violations(records: Sequence[RolloutRecord], seen: dict[str, int] | None = None) -> list[str]:
    """Return what is wrong with the decisions: their numbers (I7), the canary (I10), and who was counted (I12)."""
    found = []
    if [record.seq for record in records] != list(range(1, len(records) + 1)):
        found.append(f"I7: the records are numbered {[record.seq for record in records]}")
    steps = [record.share for record in records if record.action == "canary"]
    if steps != sorted(set(steps)):
        found.append(f"a step was begun twice: {steps}")
    if any(record.canary is not None and record.canary.version != V1.version for record in records):
        found.append("I10: another version than the one that passed is the canary")
    test = records[-1].test
    if seen is not None:
        counted = {} if test is None else {a.version: (a.seen, a.users) for a in (test.canary, test.stable)}
        expected = {name: (count, count) for name, count in seen.items()}
        if counted != expected:
            found.append(f"I12: users were counted as {counted}, not {expected}")
    return found


@pytest.mark.timeout(300)
def test_every_user_counts_once_though_the_rollout_is_killed(
    make_rig: Callable[..., Rig], record_property: Callable[[str, object], None]
) -> None:
    rig = make_rig(LOOPWRIGHT_ROLLOUT_CANARY_DWELL_MINUTES="600")
    total = dict.fromkeys((BASE.version, V1.version), 0)
    for _ in range(KILLS):
        load = threading.Timer(0.3, rig.kill)
        load.start()
        for _ in range(4):
            seen = rig.visit(0.05)
            total = {name: count + seen[name] for name, count in total.items()}
        load.join()
    rig.write("console", OPERATOR_COMMANDS, [Pause(line="assistant", command_id="c1", issued_at=NOW)])
    until(lambda: rig.decisions()[-1].action == "pause", "the pause", DECIDED_WITHIN_S)
    records = rig.decisions()
    assert violations(records, total) == []
    assert rig.read(DEAD_LETTERS) == []
    record_property("kills", KILLS)
    # Negative control: what a lost or repeated count, or a repeated record, would look like.
    assert violations(records, total | {V1.version: total[V1.version] + 1})
    assert violations([*records, records[-1]], total)


@pytest.mark.timeout(300)
def test_canary_takes_over_though_the_rollout_is_killed_at_each_step(
    make_rig: Callable[..., Rig], record_property: Callable[[str, object], None]
) -> None:
    rig = make_rig(
        LOOPWRIGHT_ROLLOUT_CANARY_DWELL_MINUTES="0.03",
        LOOPWRIGHT_ROLLOUT_CANARY_MIN_USERS="5",
        LOOPWRIGHT_ROLLOUT_CANARY_MARGIN="0.4",
        # Users who come between a decision and the next look at the decisions have the share of before.
        LOOPWRIGHT_ROLLOUT_CANARY_SETTLE_SECONDS="2",
    )
    for share in (0.05, 0.25):
        rig.kill()
        before = len(rig.decisions())
        while len(rig.decisions()) == before:
            rig.visit(share)
            assert rig.users < 5_000, rig.decisions()[-1]
    rig.kill()
    records = rig.decisions()
    assert [record.action for record in records] == ["adopt_base", "canary", "canary", "promote"]
    assert records[-1].stable == V1
    assert violations(records) == []
    assert rig.read(DEAD_LETTERS) == []
    record_property("kills", 3)


@pytest.mark.timeout(300)
def test_harmful_canary_stays_away_though_the_rollout_is_killed(
    make_rig: Callable[..., Rig], record_property: Callable[[str, object], None]
) -> None:
    rig = make_rig()
    rig.visit(0.05, canary_vote=0.0)
    rig.kill()
    while len(rig.decisions()) == 2:
        rig.visit(0.05, canary_vote=0.0)
        assert rig.users < 5_000
    rig.kill()
    again = PASSED.model_copy(update={"number": 2})
    rig.write("trainer", MODEL_VERSIONS, [version(V1, again)])
    rig.visit(0.05, canary_vote=0.0)
    rig.write("console", OPERATOR_COMMANDS, [Pause(line="assistant", command_id="c1", issued_at=NOW)])
    until(lambda: rig.decisions()[-1].action == "pause", "the pause", DECIDED_WITHIN_S)
    records = rig.decisions()
    assert [record.action for record in records] == ["adopt_base", "canary", "rollback", "pause"]
    assert (records[-1].stable, records[-1].canary) == (BASE, None)
    assert violations(records) == []
    record_property("kills", 2)
