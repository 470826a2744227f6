"""I5, I6 when a trainer is killed in any phase of a run: it continues the same run and publishes one version.

The version has the dataset with which the run started, and bit for bit the weights of an undisturbed run. Processes,
Kafka, Redis and the training of a tiny model are real. A seed picks the phases, and whether the service or only its
run's process is killed. Negative controls: `test_trainer_controls`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from services.trainer.run.folder import CONFIG
from services.trainer.run.run_table import RunConfig
from shared.adapters.topic_admin import create_topics
from shared.kafka_connection import KafkaConnection
from tests.fault.disturbed_trainer import ENDINGS, DisturbedTrainer
from tests.fault.fault_settings import SEEDS
from tests.fault.trainer_phases import PHASES, STAGE_S, plan
from tests.integration.service_process import running
from tests.trainer_fixture import PARTITIONS, TrainerLine

SHORT = [phase for phase in PHASES if phase.name == "checkpoint half-written"]
"""The phases of the short form, before the kill after publishing. Each start costs seconds of imports."""


@pytest.mark.timeout(900)
def test_run_killed_in_any_phase_publishes_the_undisturbed_version(
    kafka: str,
    redis_url: str,
    tiny_model: Path,
    tmp_path: Path,
    fresh: str,
    seed: int,
    record_property: Any,
) -> None:
    create_topics(KafkaConnection(kafka), PARTITIONS)
    trainer = TrainerLine(kafka, redis_url, tiny_model, tmp_path / "killed", fresh)
    trainer.folder.mkdir()
    disturbed = DisturbedTrainer(trainer, random.Random(seed))
    trainer.send_corrections(users=30, each=2)
    for number, phase in enumerate(plan(seed, disturbed.rng) if SEEDS > 1 else SHORT):
        disturbed.interrupt_in(phase, ENDINGS if SEEDS > 1 else ENDINGS[:1])
        if number == 0:
            # Feedback after the start of the run belongs to the next one.
            trainer.send_small_batch(users=3)
    disturbed.kill_when_published()
    with running("trainer", trainer.folder, trainer.env()):
        trainer.wait_for_version(STAGE_S)
    record_property("kills", disturbed.kills)
    assert disturbed.judge(tmp_path / "undisturbed") == []
    through = RunConfig.from_json((next(disturbed.runs.glob("*")) / CONFIG).read_text()).through
    assert dict(through) == {"0": 2}, "later batches do not belong to this run"
