"""I1, I4: whatever a killed engine was doing, every acknowledged event counts exactly once afterwards.

The workers are processes of their own and kill themselves in a named phase, or are killed from here by their pid. The
oracle reads all committed outputs and the changelog (`complaints`). It also catches an engine that is broken on
purpose, killed in the same way.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.stream_rig import Rig, complaints, until

ROOT = Path(__file__).resolve().parents[2]
PHASES = ("before_transaction", "after_produce", "after_commit", "after_store", "during_restore")


class Workers:
    """Starts workers on one rig, and ends those that are left."""

    def __init__(self, rig: Rig, logs: Path) -> None:
        self.rig = rig
        self._logs = logs
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, instance: str, **told: object) -> subprocess.Popen[bytes]:
        rig = self.rig
        words = {"kafka": rig.kafka, "name": rig.name, "partitions": rig.partitions, "slice_records": 200}
        folder = str(
            self._logs / "state" / instance
        )  # as in a deployment: a restart finds what its predecessor left
        argument = json.dumps(words | {"instance": instance, "folder": folder} | told)
        with (self._logs / f"{len(self._started)}-{instance}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "tests.fault.stream_worker", argument],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        self._started.append(worker)
        return worker

    def run(self, instance: str, **told: object) -> int:
        """Waits for its end. Its exit status: 0 drained, -9 killed."""
        return self.start(instance, **told).wait(40)

    def end(self) -> None:
        for worker in self._started:
            if worker.poll() is None:
                worker.kill()
                worker.wait(10)


@pytest.fixture
def workers(kafka: str, fresh: str, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(Rig(kafka, fresh, partitions=2).create(), tmp_path)
    yield started
    started.end()


def publish(rig: Rig, count: int, prefix: str = "e", seed: int = 7) -> dict[str, str]:
    """Events over both inputs and 40 keys, in an order of their own."""
    chosen = random.Random(seed)
    sent = {f"{prefix}{n}": f"k{chosen.randrange(40)}" for n in range(count)}
    for topic, part in ((rig.a, 0), (rig.b, 1)):
        rig.send(topic, [(key, event) for n, (event, key) in enumerate(sent.items()) if n % 2 == part])
    return sent


def test_killed_in_each_phase_it_still_counts_every_event_once(workers: Workers) -> None:
    """One process after another under one name, each killed in another phase, with work left for the next."""
    rig = workers.rig
    sent = publish(rig, 400, "first")
    bad = {f"bad{n}": "k-bad" for n in range(5)}
    rig.send(rig.b, [(key, event) for event, key in bad.items()])
    for n, phase in enumerate(PHASES):
        sent |= publish(rig, 600, f"round{n}-", seed=n)
        times = 1 if phase == "during_restore" else 2
        assert workers.run("one", kill=[phase, times]) == -signal.SIGKILL
    assert workers.run("one") == 0
    assert complaints(rig, sent) == []
    assert sorted(message.value() for message in rig.read(rig.dead)) == sorted(
        event.encode() for event in bad
    )


def test_a_successor_under_another_name_takes_over_after_a_kill(workers: Workers) -> None:
    """Nobody fences the dead one's open transaction: its time and the broker's scan must end it."""
    rig = workers.rig
    sent = publish(rig, 2_000)
    assert workers.run("one", kill=["after_produce", 3]) == -signal.SIGKILL
    assert len(rig.read(rig.out, committed=False)) > 400  # two slices, and what the killed one left
    assert workers.run("two") == 0
    assert complaints(rig, sent) == []


def test_two_processes_share_the_work_through_a_rebalance_and_a_kill(workers: Workers) -> None:
    rig = workers.rig
    sent = publish(rig, 2_000, "before")
    first = workers.start("one")
    until(lambda: len(rig.read(rig.out)) >= 400, "the first at work")
    second = workers.start("two")
    sent |= publish(rig, 2_000, "during")
    until(lambda: len(rig.read(rig.out)) >= 2_400, "both at work")
    sent |= publish(rig, 2_000, "after")
    first.kill()
    assert first.wait(10) in (0, -signal.SIGKILL)
    assert second.wait(40) == 0
    assert workers.run("three") == 0
    assert complaints(rig, sent) == []


def test_an_engine_that_commits_positions_before_the_transaction_is_caught(workers: Workers) -> None:
    """The negative control: the same workload, the same kill, the same oracle, a broken engine."""
    rig = workers.rig
    sent = publish(rig, 2_000)
    broken = {"variant": "positions first"}
    assert workers.run("one", kill=["after_produce", 3], **broken) == -signal.SIGKILL
    assert workers.run("one", **broken) == 0
    found = complaints(rig, sent)
    assert any(complaint.startswith("lost: ") for complaint in found), found
