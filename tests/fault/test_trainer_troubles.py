"""I5, I6, I11 with other faults than a kill: a full disk, an erasure during a run that is killed, a second trainer.

Processes, Kafka and the training of a tiny model are real. Negative controls: `test_trainer_controls`.
"""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

import pytest

from services.trainer.dataset import snapshot_files
from services.trainer.erasure.redact_run import rows_of
from shared.adapters.topic_admin import create_topics
from shared.kafka_connection import KafkaConnection
from tests.fault.disturbed_trainer import DisturbedTrainer
from tests.fault.fault_settings import SEEDS
from tests.fault.full_disks import can_mount, fill_disk, small_disk
from tests.fault.trainer_oracle import Observations
from tests.fault.trainer_phases import PHASES, STAGE_S, children_of, wait_for
from tests.integration.service_process import Service, running
from tests.trainer_fixture import PARTITIONS, TrainerLine, wait_until

MAX_FILE_BYTES = 20_000
DISK_MB = 64
CHECKPOINT = next(phase for phase in PHASES if phase.name == "checkpoint half-written")
GATE = next(phase for phase in PHASES if phase.name == "gate")
Fault = Callable[[DisturbedTrainer, Path], None]


@contextmanager
def full_disk(disturbed: DisturbedTrainer, service: Service) -> Iterator[None]:
    """Fill the trainer's disk or, without the right to mount one, let no file of the run grow."""
    if can_mount():
        with fill_disk(disturbed.trainer.folder / "data" / "ballast"):
            yield
        return
    for pid in children_of(service.child.pid):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, resource.RLIM_INFINITY))
    yield


def disk_is_full(disturbed: DisturbedTrainer, undisturbed: Path) -> None:
    """The trainer reports it, publishes nothing incomplete, and continues the same run once there is disk space."""
    with ExitStack() as stack:
        if can_mount():
            stack.enter_context(small_disk(disturbed.trainer.folder / "data", DISK_MB))
        service = stack.enter_context(running("trainer", disturbed.trainer.folder, disturbed.trainer.env()))
        wait_for(CHECKPOINT, disturbed.run, disturbed.rng)
        with full_disk(disturbed, service):
            wait_until(
                lambda: "Free some space there" in service.log.read_text(), STAGE_S, "the remedy in the log"
            )
            Event().wait(2.0)  # it retries meanwhile
            assert disturbed.trainer.trained_versions() == []
        disturbed.trainer.wait_for_version(STAGE_S)
        assert disturbed.judge(undisturbed) == []


def user_is_erased_while_the_run_is_killed(disturbed: DisturbedTrainer, undisturbed: Path) -> None:
    """A new run publishes one version of a dataset without the user, and no file of the first run is left."""
    trainer, observations = disturbed.trainer, Observations()
    with running("trainer", trainer.folder, trainer.env()) as service:
        wait_for(CHECKPOINT, disturbed.run, disturbed.rng)
        first = disturbed.run()
        assert first is not None
        user = snapshot_files.read_rows(first)[0].row.user_id
        request_id = trainer.request_erasure(user)
        Event().wait(disturbed.rng.random())
        disturbed.end(service, "kill service")
    with running("trainer", trainer.folder, trainer.env()) as service:
        Event().wait(2 * disturbed.rng.random())
        disturbed.end(service, "kill service")
    with running("trainer", trainer.folder, trainer.env()):
        version = trainer.wait_for_version(STAGE_S)
        trainer.wait_for_erasure_report(request_id, seconds=60)
    assert not first.exists()
    second = disturbed.run()
    assert second is not None
    assert user not in {record.row.user_id for record in rows_of(second)}
    assert version.run_id == second.name
    observations.observe(disturbed.runs)
    disturbed.observations = observations
    assert disturbed.judge(undisturbed) == []


def second_trainer_takes_over_the_line(disturbed: DisturbedTrainer, undisturbed: Path) -> None:
    """The first trainer freezes, the second one stops standing by, and the first one ends without publishing."""
    trainer = disturbed.trainer
    other = TrainerLine(
        trainer.kafka, trainer.redis_url, trainer.model, undisturbed.with_name("other"), trainer.line
    )
    other.folder.mkdir()
    with running("trainer", trainer.folder, trainer.env()) as first:
        wait_for(GATE, disturbed.run, disturbed.rng)
        first.child.send_signal(signal.SIGSTOP)
        waiting = other.env() | {"LOOPWRIGHT_TRAINER_EXAMPLES": "1000"}
        with running("trainer", other.folder, waiting):
            first.child.send_signal(signal.SIGCONT)
            assert first.child.wait(STAGE_S) == 1
            assert f"another trainer took over line {trainer.line}" in first.log.read_text()
            assert trainer.trained_versions() == []
    # The second one has left, so the first one continues its run.
    with running("trainer", trainer.folder, trainer.env()):
        trainer.wait_for_version(STAGE_S)
    assert disturbed.judge(undisturbed) == []


FAULTS = (disk_is_full, user_is_erased_while_the_run_is_killed, second_trainer_takes_over_the_line)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS if SEEDS > 1 else FAULTS[:1])
def test_trainer_with_a_fault_publishes_one_version_of_its_data(
    fault: Fault,
    kafka: str,
    redis_url: str,
    tiny_model: Path,
    tmp_path: Path,
    fresh: str,
    rare_seed: int,
) -> None:
    create_topics(KafkaConnection(kafka), PARTITIONS)
    trainer = TrainerLine(kafka, redis_url, tiny_model, tmp_path / "disturbed", fresh)
    trainer.folder.mkdir()
    trainer.send_corrections(users=30, each=2)
    fault(DisturbedTrainer(trainer, random.Random(rare_seed)), tmp_path / "undisturbed")
