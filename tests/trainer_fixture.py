"""A line for one real trainer: its folders, its environment, its topics; batches in, versions out."""

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
from services.trainer.dataset import snapshot
from services.trainer.run import run_table
from shared.adapters.kafka import KafkaLogReader, KafkaPublisher
from shared.cloudevents import cloudevent
from shared.commands import Command, CommandResult, Reproduce, TrainNow
from shared.events import Batch, ErasureReport
from shared.records import Output, Record
from shared.topics import (
    ERASURE_REPORTS,
    MODEL_VERSIONS,
    OPERATOR_COMMANDS,
    OPERATOR_RESULTS,
    TRAINING_BATCHES,
)
from shared.versions import ModelVersion
from tests.trainer_factories import batch, revision

P = 6
BATCH = 40
T = TypeVar("T")


@dataclass
class TrainerStand:
    """`folder` survives the trainer's processes, as a disk does."""

    kafka: str
    redis_url: str
    model: Path
    folder: Path
    line: str
    batches: list[Batch] = field(default_factory=list)
    garbage: bytes = field(default_factory=lambda: b"{not a batch " + secrets.token_hex(4).encode())

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    def env(self, pause: str = "") -> dict[str, str]:
        """A few steps of training, a small gate. `pause`: where to stand still and be killed."""
        return {
            "KAFKA_BOOTSTRAP_SERVERS": self.kafka,
            "REDIS_URL": self.redis_url,
            "LOOPWRIGHT_PARTITIONS": str(P),
            "LOOPWRIGHT_LINE": self.line,
            "LOOPWRIGHT_BASE_MODEL": str(self.model),
            "LOOPWRIGHT_DATA_DIR": str(self.folder / "data"),
            "LOOPWRIGHT_ARTIFACTS": str(self.artifacts),
            "LOOPWRIGHT_DEMO": "true",
            "LOOPWRIGHT_TRAINER_EXAMPLES": "20",
            "LOOPWRIGHT_TRAINER_USERS": "5",
            "LOOPWRIGHT_TRAINER_EPOCHS": "1",
            "LOOPWRIGHT_TRAINER_RANK": "4",
            "LOOPWRIGHT_TRAINER_DTYPE": "bfloat16",  # two runs are compared, and a machine may find both types alike
            "LOOPWRIGHT_TRAINER_CHECKPOINT_STEPS": "2",
            "LOOPWRIGHT_TRAINER_REPLAY_PROMPTS": "4",
            "LOOPWRIGHT_TRAINER_REPLAY_NEW_TOKENS": "6",
            "LOOPWRIGHT_TRAINER_GATE_NEW_TOKENS": "4",
            "LOOPWRIGHT_TRAINER_GATE_EVAL_PROMPTS": "4",
            "LOOPWRIGHT_TRAINER_GATE_SAFETY_PROMPTS": "4",
            "LOOPWRIGHT_TRAINER_TEST_PAUSE": pause,
        }

    # --- in ---

    def send_world(self, users: int, each: int, seed: int = 1) -> None:
        """Corrections of the demo's facts by so many users, in numbered batches."""
        dice, world = random.Random(seed), load_world()
        asked = [(user, fact) for user in range(users) for fact in dice.sample(world.facts, each)]
        examples = [
            revision(
                f"r-{user}-{fact.id}",
                dice.choice(world.trained_wordings(fact)),
                dice.choice(fact.answers),
                f"user-{user}",
                line=self.line,
            )
            for user, fact in asked
        ]
        parts = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
        batches = [batch(part, number, line=self.line) for number, part in enumerate(parts, 1)]
        self.batches = batches
        self._send_batches(batches)

    def send_more(self, users: int) -> None:
        """One more batch, of other users; too few examples to begin a run."""
        examples = [
            revision(f"more-{n}", f"What is number {n}?", f"It is {n}.", f"later-{n}", line=self.line)
            for n in range(users)
        ]
        later = batch(examples, len(self.batches) + 1, line=self.line)
        self.batches = [*self.batches, later]
        self._send_batches([later])

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
        """As `ask_to_erase`; returns the trainer's report."""
        return self.reported(self.ask_to_erase(user), seconds=seconds)

    def ask_to_erase(self, user: str) -> str:
        """The processor's whole part: the batches without this user, a report of each partition. Returns the request's
        id."""
        left = [[one for one in old.examples if one.signals[0].user_id != user] for old in self.batches]
        pairs = [
            (old, kept) for old, kept in zip(self.batches, left, strict=True) if len(kept) < len(old.examples)
        ]
        self._send_batches([batch(kept, old.number, line=self.line, rewrite=1) for old, kept in pairs])
        request_id = f"{self.line}-{user}"
        now = datetime.now(UTC)
        reports = [
            ErasureReport(
                line=self.line,
                request_id=request_id,
                subject=user,
                service="processor",
                partition=partition,
                partitions=P,
                batches={old.batch_id: 1 for old, _ in pairs} if partition == 0 else {},
                completed_at=now,
            )
            for partition in range(P)
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

    def reported(self, request_id: str, *, seconds: float) -> ErasureReport:
        """The trainer's only report on it."""
        found = until(lambda: self._erased(request_id), seconds, "the trainer's report")
        assert len(found) == 1
        return found[0]

    def _erased(self, request_id: str) -> list[ErasureReport]:
        found = [ErasureReport.from_json(record.value) for record in self.read(ERASURE_REPORTS.name)]
        return [one for one in found if (one.request_id, one.service) == (request_id, "trainer")]

    def send_garbage(self) -> None:
        self._send("processor", [Output(TRAINING_BATCHES.name, b"garbage", self.garbage, (), 0)])

    def command(self, name: str, *, seconds: float) -> CommandResult:
        """Sends `train_now` and returns its only result."""
        order = TrainNow(line=self.line, command_id=f"{self.line}-{name}", issued_at=datetime.now(UTC))
        return self.give(order, seconds=seconds)

    def reproduce(self, name: str, version: str, *, seconds: float) -> CommandResult:
        """Sends an order to train this version again and returns its only result."""
        order = Reproduce(
            line=self.line, command_id=f"{self.line}-{name}", issued_at=datetime.now(UTC), version=version
        )
        return self.give(order, seconds=seconds)

    def give(self, order: Command, *, seconds: float) -> CommandResult:
        """Sends an order and returns its only result."""
        record = cloudevent(
            OPERATOR_COMMANDS,
            self.line,
            order,
            source="console",
            ce_id=order.command_id,
            at=order.issued_at,
            partition=0,
        )
        self._send("console", [record])
        found = until(lambda: self._results(order.command_id), seconds, "a result")
        assert len(found) == 1
        return found[0]

    def _results(self, command_id: str) -> list[CommandResult]:
        results = [CommandResult.from_json(record.value) for record in self.read(OPERATOR_RESULTS.name)]
        return [one for one in results if one.command_id == command_id]

    def _send(self, service: str, records: list[Output]) -> None:
        publisher = KafkaPublisher(self.kafka, service)
        for future in [publisher.publish(record) for record in records]:
            future.result(20)
        publisher.close()

    # --- out ---

    def read(self, topic: str) -> list[Record]:
        reader = KafkaLogReader(self.kafka, "tests", [topic])
        records: list[Record] = []
        while not reader.at_end():
            records += reader.poll(0.2)
        reader.close()
        return records

    def versions(self) -> list[ModelVersion]:
        """Of this line, in order; the base is the first. What other tests left on the shared broker is theirs."""
        ours = f"{self.line}@".encode()
        records = [r for r in self.read(MODEL_VERSIONS.name) if (r.key or b"").startswith(ours)]
        return [ModelVersion.from_json(record.value) for record in records]

    def trained(self) -> list[ModelVersion]:
        return [version for version in self.versions() if version.number is not None]

    def published(self, seconds: float) -> ModelVersion:
        """Waits for the first version that was trained, and until the run table says so too."""
        version = until(self.trained, seconds, "a version")[0]
        until(lambda: self._stage() == "published", seconds, "the run table to say so")
        return version

    def reached(self, name: str, seconds: float) -> Path:
        """Waits for a file in a run's folder."""
        found = until(lambda: list(self._runs().glob(f"*/{name}")), seconds, name)
        return found[0]

    def digests(self) -> set[str]:
        """Of all datasets that lie on the disk."""
        return {snapshot.read_ref(mark.parent).digest for mark in self._runs().glob("*/snapshot.json")}

    def _runs(self) -> Path:
        return self.folder / "data" / "trainer" / self.line / "runs"

    def _stage(self) -> str:
        db = open_database(self.folder / "data" / "trainer" / self.line)
        try:
            return run_table.all_runs(db)[-1].stage
        finally:
            db.close()


def until(look: Callable[[], T], seconds: float, what: str) -> T:
    """What `look` gives as soon as it is something."""
    waiting = Retrying(
        stop=stop_after_delay(seconds), wait=wait_fixed(0.1), retry=retry_if_result(lambda found: not found)
    )
    try:
        return waiting(look)
    except RetryError:
        raise AssertionError(f"no sign of {what} within {seconds} s") from None
