"""I5, I6, I11 in trouble other than a kill: a disk that is full in the middle of a run, an erasure under it with kills
around, a second trainer on its line. Real processes, Kafka and training of a tiny model."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

import pytest

from services.trainer.dataset import snapshot
from services.trainer.erasure.redact_run import rows_of
from shared.adapters.topic_admin import create_topics
from tests.fault.disturbed_trainer import Disturbed
from tests.fault.fault_settings import SEEDS
from tests.fault.full_disks import ballast, may_mount, small_disk
from tests.fault.trainer_kills import PHASES, SLOWLY_S, children_of, wait_for
from tests.fault.trainer_oracle import Seen
from tests.integration.service_process import Service, running
from tests.trainer_fixture import P, TrainerStand, until

LARGEST_FILE = 20_000
DISK_MB = 64
CHECKPOINT = next(phase for phase in PHASES if phase.name == "checkpoint half-written")
GATE = next(phase for phase in PHASES if phase.name == "gate")
Trouble = Callable[[Disturbed, Path], None]


@contextmanager
def full(disturbed: Disturbed, service: Service) -> Iterator[None]:
    """Not a byte is left; where a file system of its own may not be mounted: no file of the run may grow on."""
    if may_mount():
        with ballast(disturbed.stand.folder / "data" / "ballast"):
            yield
        return
    for pid in children_of(service.child.pid):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (LARGEST_FILE, resource.RLIM_INFINITY))
    yield


def a_full_disk_is_waited_for(disturbed: Disturbed, alone: Path) -> None:
    """It says so, never publishes half, and goes on by itself once there is room: the very same run."""
    with ExitStack() as stack:
        if may_mount():
            stack.enter_context(small_disk(disturbed.stand.folder / "data", DISK_MB))
        service = stack.enter_context(running("trainer", disturbed.stand.folder, disturbed.stand.env()))
        wait_for(CHECKPOINT, disturbed.run, disturbed.dice)
        with full(disturbed, service):
            until(lambda: "Free some space there" in service.log.read_text(), SLOWLY_S, "what to do about it")
            Event().wait(2.0)  # it tries again and again
            assert disturbed.stand.trained() == []
        disturbed.stand.published(SLOWLY_S)
        assert disturbed.judge(alone) == []


def an_erasure_under_a_run_that_is_killed_begins_it_anew(disturbed: Disturbed, alone: Path) -> None:
    """Killed while it follows the erasure, and again: one version, of a dataset without the user, and none of the files
    that the run before had made of it."""
    stand, seen = disturbed.stand, Seen()
    with running("trainer", stand.folder, stand.env()) as service:
        wait_for(CHECKPOINT, disturbed.run, disturbed.dice)
        first = disturbed.run()
        assert first is not None
        user = snapshot.read_rows(first)[0].row.user_id
        request_id = stand.ask_to_erase(user)
        Event().wait(disturbed.dice.random())
        disturbed.end(service, "-9")
    with running("trainer", stand.folder, stand.env()) as service:
        Event().wait(2 * disturbed.dice.random())
        disturbed.end(service, "-9")
    with running("trainer", stand.folder, stand.env()):
        version = stand.published(SLOWLY_S)
        stand.reported(request_id, seconds=60)
    assert not first.exists()
    second = disturbed.run()
    assert second is not None
    assert user not in {one.row.user_id for one in rows_of(second)}
    assert version.run_id == second.name
    seen.look(disturbed.runs)
    disturbed.seen = seen
    assert disturbed.judge(alone) == []


def a_second_trainer_of_the_line_ends_the_first_which_publishes_nothing(
    disturbed: Disturbed, alone: Path
) -> None:
    """The first stands still in its run, a second takes over the line, the first wakes up and comes to its end."""
    stand = disturbed.stand
    other = TrainerStand(stand.kafka, stand.redis_url, stand.model, alone.with_name("other"), stand.line)
    other.folder.mkdir()
    with running("trainer", stand.folder, stand.env()) as first:
        wait_for(GATE, disturbed.run, disturbed.dice)
        first.child.send_signal(signal.SIGSTOP)
        waiting = other.env() | {"LOOPWRIGHT_TRAINER_EXAMPLES": "1000"}
        with running("trainer", other.folder, waiting):
            first.child.send_signal(signal.SIGCONT)
            assert first.child.wait(SLOWLY_S) == 1
            assert "another trainer took over the line" in first.log.read_text()
            assert stand.trained() == []
    # Who is started last has the line: the same run goes on.
    with running("trainer", stand.folder, stand.env()):
        stand.published(SLOWLY_S)
    assert disturbed.judge(alone) == []


TROUBLES = (
    a_full_disk_is_waited_for,
    an_erasure_under_a_run_that_is_killed_begins_it_anew,
    a_second_trainer_of_the_line_ends_the_first_which_publishes_nothing,
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("trouble", TROUBLES if SEEDS > 1 else TROUBLES[:1])
def test_in_trouble_one_version_is_published_of_the_data_that_it_should_have(
    trouble: Trouble,
    kafka: str,
    redis_url: str,
    tiny_model: Path,
    tmp_path: Path,
    fresh: str,
    rare_seed: int,
) -> None:
    create_topics(kafka, P)
    stand = TrainerStand(kafka, redis_url, tiny_model, tmp_path / "troubled", fresh)
    stand.folder.mkdir()
    stand.send_world(users=30, each=2)
    trouble(Disturbed(stand, random.Random(rare_seed)), tmp_path / "left alone")
