"""What the state costs: many keys against few, memory, starting again, taking over from a process that was killed."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from benchmarks.processor.harness import Lab, Running, cache_mb, python, status
from benchmarks.processor.job import Job
from benchmarks.processor.kafka_client import Sent, WrongResult
from benchmarks.processor.latency import Follower, Seen, following, paced, until_running
from benchmarks.processor.onestage import WARM_UP, checked_rate, new_job
from benchmarks.processor.votes import Workload

ENGINE = "benchmarks.processor.jobs.engine"
REMEMBERED = 2
"""Event ids kept per key here: then few keys with many events have states as large as many keys with few."""
ASKED = 400
"""Events sent after a restart, to see that the state is what it was."""
PACE = 1_000
BEFORE_KILL_S = 6.0


def keys(lab: Lab, live: int, most: int, events: int, *, restart: bool) -> dict[str, float]:
    """Events a second once `live` keys are there, with a cache of a tenth of the `most` keys of all arms.

    `restart`: also the seconds from the start of a process until it works, warm (after a graceful stop) and cold
    (its store gone), and that it then counts on from where it was.
    """
    workload = Workload(live + events, live, repeats=False)
    job = dataclasses.replace(
        new_job(lab, f"keys-{live}", workload), cache_mb=cache_mb(most), remembered=REMEMBERED
    )
    with lab.running(job.name, python(ENGINE, job.to_json())) as running:
        running.until_written(lab.log, job.output, workload.events)
        load = running.load()
    found = checked_rate(lab, job, workload, live + round(WARM_UP * events))
    result = {"events_per_s": round(found, 1), "events": events, "keys": live, **load}
    if restart:
        result["warm_start_s"] = round(restarted(lab, job, workload, 0), 2)
        shutil.rmtree(Path(job.folder) / "state")
        result["cold_restore_s"] = round(restarted(lab, job, workload, ASKED), 2)
        # Its input has more events now than its name says.
        lab.forget_input(workload)
    lab.clean(job.name, Path(job.folder))
    return result


def restarted(lab: Lab, job: Job, workload: Workload, asked_before: int) -> float:
    """Seconds from the start of the process until it works on all partitions. Raises `WrongResult` where it then does
    not know what it knew."""
    (Path(job.folder) / "status.json").unlink(missing_ok=True)
    began = time.time()
    with lab.running(job.name, python(ENGINE, job.to_json())) as running:
        took = until_running(Path(job.folder), lab.partitions, running) - began
        more = dataclasses.replace(workload, events=workload.events + asked_before + ASKED)
        asked = range(workload.events + asked_before, more.events)
        with following(lab.log, job.output) as follower:
            lab.log.load(job.input, (more.event(i) for i in asked))
            follower.until(
                lambda seen: len(seen) >= len(asked), running, "an output for each event after a restart"
            )
    counted = {
        found["event_id"]: found["total"] for found in (orjson.loads(one.value) for one in follower.seen)
    }
    right = {orjson.loads(more.event(i)[1])["event_id"]: i // more.keys + 1 for i in asked}
    if counted != right:
        wrong = sum(1 for event_id, total in right.items() if counted.get(event_id) != total)
        raise WrongResult(f"{job.name}: after a restart {wrong} of {ASKED} events were counted wrongly")
    return took


def takeover(lab: Lab, seconds: float) -> dict[str, float]:
    """Seconds from kill -9 of one of two processes until an output of each of its partitions can be read again.

    Raises `WrongResult` unless every event has exactly one output in the end.
    """
    source, own = lab.fresh("steady-votes")
    lab.log.create({source: {}}, lab.partitions)
    workload = Workload.halves(round(PACE * seconds))
    first = new_job(lab, "takeover", workload, source)
    folder = Path(first.folder)
    jobs = [dataclasses.replace(first, instance=name, folder=str(folder / name)) for name in ("a", "b")]
    for job in jobs:
        Path(job.folder).mkdir()
    with (
        lab.running(f"{first.name}-a", python(ENGINE, jobs[0].to_json())) as a,
        lab.running(f"{first.name}-b", python(ENGINE, jobs[1].to_json())) as b,
        following(lab.log, first.output) as follower,
    ):
        for job, running in zip(jobs, (a, b), strict=True):
            until_running(Path(job.folder), lab.partitions // 2, running)
        scene = _Scene(lab, follower, Path(jobs[0].folder), a)
        paced(lab.log, scene.votes(source, workload), PACE)
        follower.until(
            lambda seen: len(seen) >= workload.events, b, "an output for each event after the kill"
        )
        took = scene.took()
    checked_rate(lab, first, workload, 0)
    lab.clean(first.name, folder)
    lab.clean(source, own)
    return {"takeover_s": round(took, 2)}


class _Scene:
    """A kill while votes come in, and what is seen of it from outside."""

    def __init__(self, lab: Lab, follower: Follower, folder: Path, victim: Running) -> None:
        self._log, self._follower, self._folder, self._victim = lab.log, follower, folder, victim
        self._lost: list[int] = []
        self._killed = 0.0

    def votes(self, source: str, workload: Workload) -> Iterator[tuple[str, Sent]]:
        """All events; after the first seconds the victim is killed."""
        for i in range(workload.events):
            if i == round(BEFORE_KILL_S * PACE):
                self._lost = list(status(self._folder)["partitions"])
                self._killed = time.time()
                self._victim.child.kill()
            yield source, workload.event(i)

    def took(self) -> float:
        """Until the last of the victim's partitions spoke again. What was appended before the kill was its own."""
        again: dict[int, Seen] = {}
        for one in self._follower.seen:
            if one.partition in self._lost and one.appended_ms > self._killed * 1000:
                again.setdefault(one.partition, one)
        if not self._lost or again.keys() != set(self._lost):
            raise WrongResult(
                f"of the partitions {self._lost} of the killed process, {sorted(again)} went on"
            )
        return max(one.at for one in again.values()) - self._killed
