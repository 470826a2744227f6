"""I5, I6: a trainer killed with -9 wherever a run can be goes on with the same run, and publishes one version: of the
dataset that the run began with, with the weights, to the last bit, of a run that nobody disturbed.

Real processes, Kafka, Redis and training of a tiny model. A seed picks where it is killed, and whether the service is
or only its run's process. The oracle's controls are in `test_trainer_controls`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from services.trainer.run.folder import CONFIG
from services.trainer.run.run_table import RunConfig
from shared.adapters.topic_admin import create_topics
from tests.fault.disturbed_trainer import HOWS, Disturbed
from tests.fault.fault_settings import SEEDS
from tests.fault.trainer_kills import PHASES, SLOWLY_S, plan
from tests.integration.service_process import running
from tests.trainer_fixture import P, TrainerStand

SHORT = [phase for phase in PHASES if phase.name == "checkpoint half-written"]
"""Among all tests it is killed there, and after the version is in the log: each start costs seconds of imports."""


@pytest.mark.timeout(900)
def test_killed_wherever_it_can_be_a_run_publishes_one_version_of_the_weights_it_would_have_had(
    kafka: str,
    redis_url: str,
    tiny_model: Path,
    tmp_path: Path,
    fresh: str,
    seed: int,
    record_property: Any,
) -> None:
    create_topics(kafka, P)
    stand = TrainerStand(kafka, redis_url, tiny_model, tmp_path / "killed", fresh)
    stand.folder.mkdir()
    disturbed = Disturbed(stand, random.Random(seed))
    stand.send_world(users=30, each=2)
    for number, phase in enumerate(plan(seed, disturbed.dice) if SEEDS > 1 else SHORT):
        disturbed.end_in(phase, HOWS if SEEDS > 1 else HOWS[:1])
        if number == 0:
            # What is said after the run began is for the next one.
            stand.send_more(users=3)
    disturbed.kill_when_published()
    with running("trainer", stand.folder, stand.env()):
        stand.published(SLOWLY_S)
    record_property("kills", disturbed.kills)
    assert disturbed.judge(tmp_path / "left alone") == []
    through = RunConfig.from_json((next(disturbed.runs.glob("*")) / CONFIG).read_text()).through
    assert dict(through) == {"0": 2}, "the batches that came later are none of its"
