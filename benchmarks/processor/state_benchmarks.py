"""Cost of the state: many keys against few, memory, restarts, and takeover from a killed process."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from benchmarks.processor.harness import BenchmarkRun, MeasuredProcess, cache_mb, python, read_status
from benchmarks.processor.job import Job
from benchmarks.processor.kafka_client import OutgoingRecord, WrongResult
from benchmarks.processor.latency import (
    OutputFollower,
    ReceivedOutput,
    follow_outputs,
    send_at_rate,
    wait_until_running,
)
from benchmarks.processor.one_stage import WARM_UP_SHARE, checked_rate, new_job
from benchmarks.processor.votes import Workload

ENGINE = "benchmarks.processor.jobs.engine"
REMEMBERED_EVENTS = 2
"""Event ids kept per key, so few that states are equally large for few and for many events per key."""
CHECK_EVENTS = 400
"""Events sent after a restart to check the state."""
RATE = 1_000
BEFORE_KILL_S = 6.0


def measure_keys(
    bench: BenchmarkRun, live: int, most: int, events: int, *, restart: bool
) -> dict[str, float]:
    """Return events per second once `live` keys exist, with a cache for a tenth of the `most` keys of any arm.

    With `restart`, also measure the seconds from the start of a process until it runs, warm (after a graceful stop) and
    cold (without its store), and check that it continues with the right counts.
    """
    workload = Workload(live + events, live, repeats=False)
    job = dataclasses.replace(
        new_job(bench, f"keys-{live}", workload), cache_mb=cache_mb(most), remembered_events=REMEMBERED_EVENTS
    )
    with bench.running(job.name, python(ENGINE, job.to_json())) as running:
        running.wait_until_written(bench.kafka, job.output, workload.events)
        load = running.load()
    rate = checked_rate(bench, job, workload, live + round(WARM_UP_SHARE * events))
    result = {"events_per_s": round(rate, 1), "events": events, "keys": live, **load}
    if restart:
        result["warm_start_s"] = round(measure_restart(bench, job, workload, 0), 2)
        shutil.rmtree(Path(job.folder) / "state")
        result["cold_restore_s"] = round(measure_restart(bench, job, workload, CHECK_EVENTS), 2)
        # The input now has more events than its name says.
        bench.discard_input(workload)
    bench.clean(job.name, Path(job.folder))
    return result


def measure_restart(bench: BenchmarkRun, job: Job, workload: Workload, checked_before: int) -> float:
    """Return the seconds from the start of the process until it runs all partitions.

    Raises `WrongResult` if it then does not have its former state.
    """
    (Path(job.folder) / "status.json").unlink(missing_ok=True)
    began = time.time()
    with bench.running(job.name, python(ENGINE, job.to_json())) as running:
        took = wait_until_running(Path(job.folder), bench.partitions, running) - began
        more = dataclasses.replace(workload, events=workload.events + checked_before + CHECK_EVENTS)
        checked = range(workload.events + checked_before, more.events)
        with follow_outputs(bench.kafka, job.output) as follower:
            bench.kafka.load(job.input, (more.event(i) for i in checked))
            follower.wait_until(
                lambda outputs: len(outputs) >= len(checked),
                running,
                "an output for each event after a restart",
            )
    totals = {
        output["event_id"]: output["total"]
        for output in (orjson.loads(each.value) for each in follower.outputs)
    }
    expected = {orjson.loads(more.event(i)[1])["event_id"]: i // more.keys + 1 for i in checked}
    if totals != expected:
        wrong = sum(1 for event_id, total in expected.items() if totals.get(event_id) != total)
        raise WrongResult(
            f"{job.name}: after a restart {wrong} of {CHECK_EVENTS} events were counted wrongly"
        )
    return took


def measure_takeover(bench: BenchmarkRun, seconds: float) -> dict[str, float]:
    """Return the seconds from kill -9 of one of two processes until each of its partitions has an output again.

    Raises `WrongResult` unless every event finally has exactly one output.
    """
    source, own = bench.new_name("steady-votes")
    bench.kafka.create({source: {}}, bench.partitions)
    workload = Workload.two_per_key(round(RATE * seconds))
    first = new_job(bench, "takeover", workload, source)
    folder = Path(first.folder)
    jobs = [dataclasses.replace(first, instance=name, folder=str(folder / name)) for name in ("a", "b")]
    for job in jobs:
        Path(job.folder).mkdir()
    with (
        bench.running(f"{first.name}-a", python(ENGINE, jobs[0].to_json())) as a,
        bench.running(f"{first.name}-b", python(ENGINE, jobs[1].to_json())) as b,
        follow_outputs(bench.kafka, first.output) as follower,
    ):
        for job, running in zip(jobs, (a, b), strict=True):
            wait_until_running(Path(job.folder), bench.partitions // 2, running)
        scenario = _KillScenario(bench, follower, Path(jobs[0].folder), a)
        send_at_rate(bench.kafka, scenario.events(source, workload), RATE)
        follower.wait_until(
            lambda outputs: len(outputs) >= workload.events, b, "an output for each event after the kill"
        )
        took = scenario.takeover_s()
    checked_rate(bench, first, workload, 0)
    bench.clean(first.name, folder)
    bench.clean(source, own)
    return {"takeover_s": round(took, 2)}


class _KillScenario:
    """A kill while events arrive, and its effect on the outputs."""

    def __init__(
        self, bench: BenchmarkRun, follower: OutputFollower, folder: Path, victim: MeasuredProcess
    ) -> None:
        self._kafka, self._follower, self._folder, self._victim = bench.kafka, follower, folder, victim
        self._lost: list[int] = []
        self._killed = 0.0

    def events(self, source: str, workload: Workload) -> Iterator[tuple[str, OutgoingRecord]]:
        """Yield all events, and kill the victim after the first seconds."""
        for i in range(workload.events):
            if i == round(BEFORE_KILL_S * RATE):
                self._lost = list(read_status(self._folder)["partitions"])
                self._killed = time.time()
                self._victim.child.kill()
            yield source, workload.event(i)

    def takeover_s(self) -> float:
        """Return the time until the last of the victim's partitions had a new output, appended after the kill."""
        first: dict[int, ReceivedOutput] = {}
        for output in self._follower.outputs:
            if output.partition in self._lost and output.appended_ms > self._killed * 1000:
                first.setdefault(output.partition, output)
        if not self._lost or first.keys() != set(self._lost):
            raise WrongResult(
                f"of the partitions {self._lost} of the killed process, only {sorted(first)} were taken over"
            )
        return max(output.received_at for output in first.values()) - self._killed
