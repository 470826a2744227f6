"""One line for a real trainer process: its folder, its environment, and its records on the log."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from examples.world import load_world
from services.trainer.database import open_database
from services.trainer.dataset import snapshot_files
from services.trainer.run import run_table
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.cloudevents import cloudevent
from shared.commands import Command, CommandResult, GateAgain, Reproduce, TrainNow
from shared.events import Batch, ErasureReport
from shared.kafka_connection import KafkaConnection
from shared.records import Output, Record
from shared.run_stage import RunStage
from shared.topics import (
    ERASURE_REPORTS,
    MODEL_VERSIONS,
    OPERATOR_COMMANDS,
    OPERATOR_RESULTS,
    TRAINING_BATCHES,
)
from shared.versions import ModelVersion
from tests.trainer_factories import batch, revision

PARTITIONS = 6
EXAMPLES_PER_BATCH = 40
T = TypeVar("T")


@dataclass
class TrainerLine:
    """Sends batches and commands for one line, and reads what its trainer publishes.

    `folder` outlives the trainer's processes, as a disk does.
    """

    kafka: str
    redis_url: str
    model: Path
    folder: Path
    line: str
    batches: list[Batch] = field(default_factory=list)
    garbage: bytes = field(default_factory=lambda: b"{not a batch " + secrets.token_hex(4).encode())

    @property
    def artifacts(self) -> Path:
        """Folder of the artifact store."""
        return self.folder / "artifacts"

    def env(self, pause: str = "") -> dict[str, str]:
        """Environment of a trainer with few training steps and a small gate, which pauses at the stage `pause`."""
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "REDIS_URL": self.redis_url,
            "LOOPWRIGHT_PARTITIONS": str(PARTITIONS),
            "LOOPWRIGHT_LINE": self.line,
            "LOOPWRIGHT_BASE_MODEL": str(self.model),
            "LOOPWRIGHT_DATA_DIR": str(self.folder / "data"),
            "LOOPWRIGHT_ARTIFACTS": str(self.artifacts),
            "LOOPWRIGHT_DEMO": "true",
            "LOOPWRIGHT_TRAINER_EXAMPLES": "20",
            "LOOPWRIGHT_TRAINER_USERS": "5",
            "LOOPWRIGHT_TRAINER_REQUIRE_GATE_ITEMS": "false",
            "LOOPWRIGHT_TRAINER_EPOCHS": "1",
            "LOOPWRIGHT_TRAINER_RANK": "4",
            "LOOPWRIGHT_TRAINER_DTYPE": "bfloat16",  # runs are compared, so both must use one data type
            "LOOPWRIGHT_TRAINER_CHECKPOINT_STEPS": "2",
            "LOOPWRIGHT_TRAINER_REPLAY_PROMPTS": "4",
            "LOOPWRIGHT_TRAINER_REPLAY_NEW_TOKENS": "6",
            "LOOPWRIGHT_TRAINER_GATE_NEW_TOKENS": "4",
            "LOOPWRIGHT_TRAINER_GATE_EVAL_PROMPTS": "4",
            "LOOPWRIGHT_TRAINER_GATE_SKILL_PROMPTS": "1",
            "LOOPWRIGHT_TRAINER_GATE_SAFETY_PROMPTS": "4",
            "LOOPWRIGHT_TRAINER_TEST_PAUSE": pause,
        }

    # --- sending ---

    def send_corrections(self, users: int, each: int, seed: int = 1) -> None:
        """Send numbered batches in which each of `users` users corrects `each` facts of the demo world."""
        rng, world = random.Random(seed), load_world()
        pairs = [(user, fact) for user in range(users) for fact in rng.sample(world.facts, each)]
        examples = [
            revision(
                f"r-{user}-{fact.id}",
                rng.choice(world.trained_wordings(fact)),
                rng.choice(fact.answers),
                f"user-{user}",
                line=self.line,
            )
            for user, fact in pairs
        ]
        parts = [examples[i : i + EXAMPLES_PER_BATCH] for i in range(0, len(examples), EXAMPLES_PER_BATCH)]
        self.batches = [batch(part, number, line=self.line) for number, part in enumerate(parts, 1)]
        self._send_batches(self.batches)

    def send_small_batch(self, users: int) -> None:
        """Send one more batch, of other users, with too few examples to start a run."""
        examples = [
            revision(f"more-{n}", f"What is number {n}?", f"It is {n}.", f"later-{n}", line=self.line)
            for n in range(users)
        ]
        small = batch(examples, len(self.batches) + 1, line=self.line)
        self.batches = [*self.batches, small]
        self._send_batches([small])

    def _send_batches(self, batches: list[Batch]) -> None:
        now = datetime.now(UTC)
        self._send(
            "processor",
            [
                cloudevent(
                    TRAINING_BATCHES, one.batch_id, one, source="processor", ce_id="x", at=now, partition=0
                )
                for one in batches
            ],
        )

    def erase(self, user: str, *, seconds: float) -> ErasureReport:
        """Request the erasure of a user, and return the trainer's report."""
        return self.wait_for_erasure_report(self.request_erasure(user), seconds=seconds)

    def request_erasure(self, user: str) -> str:
        """Send what the processor publishes for an erasure: rewritten batches and a report per partition.

        Returns the request's id.
        """
        kept = [[one for one in old.examples if one.signals[0].user_id != user] for old in self.batches]
        rewritten = [
            batch(examples, old.number, line=self.line, rewrite=1)
            for old, examples in zip(self.batches, kept, strict=True)
            if len(examples) < len(old.examples)
        ]
        self._send_batches(rewritten)
        request_id = f"{self.line}-{user}"
        now = datetime.now(UTC)
        reports = [
            ErasureReport(
                line=self.line,
                request_id=request_id,
                subject=user,
                service="processor",
                partition=partition,
                partitions=PARTITIONS,
                batches={one.batch_id: 1 for one in rewritten} if partition == 0 else {},
                completed_at=now,
            )
            for partition in range(PARTITIONS)
        ]
        self._send(
            "processor",
            [
                cloudevent(
                    ERASURE_REPORTS, request_id, one, source="processor", ce_id=f"{one.partition}", at=now
                )
                for one in reports
            ],
        )
        return request_id

    def wait_for_erasure_report(self, request_id: str, *, seconds: float) -> ErasureReport:
        """Return the trainer's report on the request, and check that there is only one."""
        reports = wait_until(lambda: self._erasure_reports(request_id), seconds, "the trainer's report")
        assert len(reports) == 1
        return reports[0]

    def _erasure_reports(self, request_id: str) -> list[ErasureReport]:
        reports = [ErasureReport.from_json(record.value) for record in self.read(ERASURE_REPORTS.name)]
        return [one for one in reports if (one.request_id, one.service) == (request_id, "trainer")]

    def send_garbage(self) -> None:
        """Send a record that is not a batch to the topic of batches."""
        self._send("processor", [Output(TRAINING_BATCHES.name, b"garbage", self.garbage, (), 0)])

    def train_now(self, name: str, *, seconds: float) -> CommandResult:
        """Send a `train_now` command and return its only result."""
        command = TrainNow(line=self.line, command_id=f"{self.line}-{name}", issued_at=datetime.now(UTC))
        return self.execute(command, seconds=seconds)

    def reproduce(self, name: str, version: str, *, seconds: float) -> CommandResult:
        """Send a command to reproduce a version and return its only result."""
        command = Reproduce(
            line=self.line, command_id=f"{self.line}-{name}", issued_at=datetime.now(UTC), version=version
        )
        return self.execute(command, seconds=seconds)

    def gate_again(self, name: str, version: str, *, seconds: float) -> CommandResult:
        """Send a command to gate a version again and return its only result."""
        command = GateAgain(
            line=self.line, command_id=f"{self.line}-{name}", issued_at=datetime.now(UTC), version=version
        )
        return self.execute(command, seconds=seconds)

    def execute(self, command: Command, *, seconds: float) -> CommandResult:
        """Send a command and return its only result."""
        record = cloudevent(
            OPERATOR_COMMANDS,
            self.line,
            command,
            source="console",
            ce_id=command.command_id,
            at=command.issued_at,
            partition=0,
        )
        self._send("console", [record])
        results = wait_until(lambda: self._results(command.command_id), seconds, "a result")
        assert len(results) == 1
        return results[0]

    def _results(self, command_id: str) -> list[CommandResult]:
        results = [CommandResult.from_json(record.value) for record in self.read(OPERATOR_RESULTS.name)]
        return [one for one in results if one.command_id == command_id]

    def _send(self, service: str, records: list[Output]) -> None:
        publisher = KafkaPublisher(KafkaConnection(self.kafka), service)
        for future in [publisher.publish(record) for record in records]:
            future.result(20)
        publisher.close()

    # --- reading ---

    def read(self, topic: str) -> list[Record]:
        """Return all records on a topic."""
        reader = KafkaLogReader(KafkaConnection(self.kafka), "tests", [topic])
        records: list[Record] = []
        while not reader.at_end():
            records += reader.poll(0.2)
        reader.close()
        return records

    def versions(self) -> list[ModelVersion]:
        """Return the line's versions in order, starting with the base. Other tests use the same broker."""
        prefix = f"{self.line}@".encode()
        records = [r for r in self.read(MODEL_VERSIONS.name) if (r.key or b"").startswith(prefix)]
        return [ModelVersion.from_json(record.value) for record in records]

    def trained_versions(self) -> list[ModelVersion]:
        """Return the line's versions without the base."""
        return [version for version in self.versions() if version.number is not None]

    def wait_for_version(self, seconds: float) -> ModelVersion:
        """Wait for the first trained version, and until the run table has it too."""
        version = wait_until(self.trained_versions, seconds, "a version")[0]
        wait_until(lambda: self._stage() == RunStage.PUBLISHED, seconds, "the run's stage")
        return version

    def wait_for_file(self, name: str, seconds: float) -> Path:
        """Wait for a file in a run's folder."""
        return wait_until(lambda: list(self._runs().glob(f"*/{name}")), seconds, name)[0]

    def dataset_digests(self) -> set[str]:
        """Return the digests of all snapshots on the disk."""
        return {snapshot_files.read_ref(mark.parent).digest for mark in self._runs().glob("*/snapshot.json")}

    def _runs(self) -> Path:
        return self.folder / "data" / "trainer" / self.line / "runs"

    def _stage(self) -> RunStage:
        db = open_database(self.folder / "data" / "trainer" / self.line)
        try:
            return run_table.all_runs(db)[-1].stage
        finally:
            db.close()


def wait_until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Call `condition` until it returns something true, and return that."""
    retrying = Retrying(
        stop=stop_after_delay(seconds), wait=wait_fixed(0.1), retry=retry_if_result(lambda value: not value)
    )
    try:
        return retrying(condition)
    except RetryError:
        raise AssertionError(f"no sign of {what} within {seconds} s") from None
