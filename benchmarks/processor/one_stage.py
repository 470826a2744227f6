"""Runs the one-stage job in each arm, checks the outputs, and computes the rate."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

import orjson

from benchmarks.processor.broker import PREPARED
from benchmarks.processor.harness import BenchmarkRun, cache_mb, python
from benchmarks.processor.job import Job
from benchmarks.processor.kafka_client import WrongResult, message_value, records_per_second
from benchmarks.processor.votes import Workload
from deploy.local.atomic_dirs import atomic_dir, exclusive_lock, is_complete
from deploy.local.errors import StackError
from deploy.local.model import find_uv
from deploy.local.processes import Program
from deploy.local.run_job import run_job

Arm = Literal["raw", "engine", "faust", "quixstreams"]
COMPACT = {"cleanup.policy": "compact"}
WARM_UP_SHARE = 0.1
"""Share of the first outputs that is not counted: process start, joining the group, first fetches."""
SHARED_AFTER = 0.3
"""Share of the first outputs that is not counted where several processes start."""
LOCK = Path(__file__).with_name("quixstreams.txt")
QUIXSTREAMS = Path(".loopwright/bench/quixstreams")


def new_job(bench: BenchmarkRun, arm: str, workload: Workload, source: str | None = None) -> Job:
    """Create a job over this workload, or over the topic `source`, with its topics."""
    name, folder = bench.new_name(arm)
    job = Job(
        kafka=bench.broker.address,
        name=name,
        input=source or bench.input(workload),
        output=f"{name}-out",
        changelog=f"{name}-changelog",
        dead_letters=f"{name}-dead",
        folder=str(folder),
        partitions=bench.partitions,
        cache_mb=cache_mb(workload.keys),
    )
    bench.kafka.create({job.output: {}, job.changelog: COMPACT, job.dead_letters: {}}, bench.partitions)
    return job


def command(arm: Arm, job: Job) -> tuple[Sequence[str], Mapping[str, str]]:
    """Return the command line of an arm and its environment variables."""
    if arm == "quixstreams":
        script = Path("benchmarks/processor/jobs/quix.py")
        return [str(quixstreams_python()), str(script), job.to_json()], {"PYTHONPATH": str(Path.cwd())}
    module = {"raw": "raw", "engine": "engine", "faust": "faust_agent"}[arm]
    return python(f"benchmarks.processor.jobs.{module}", job.to_json()), {}


def measure(bench: BenchmarkRun, arm: Arm, events: int) -> dict[str, float]:
    """Return events per second of one arm. Raises `WrongResult` unless each event has one correct output."""
    workload = Workload.two_per_key(events)
    job = new_job(bench, arm, workload)
    argv, env = command(arm, job)
    with bench.running(job.name, argv, env) as running:
        running.wait_until_written(bench.kafka, job.output, workload.events)
        load = running.load()
    rate = checked_rate(bench, job, workload, round(WARM_UP_SHARE * workload.events), raw=arm == "raw")
    bench.clean(job.name, Path(job.folder))
    return {"events_per_s": round(rate, 1), "events": workload.events, **load}


def measure_processes(bench: BenchmarkRun, count: int, events: int) -> dict[str, float]:
    """Return events per second of `count` engine processes that share the partitions.

    Raises `WrongResult` unless each event has one correct output.
    """
    workload = Workload.two_per_key(events)
    job = new_job(bench, f"processes-{count}", workload)
    with ExitStack() as stack:
        processes = []
        for number in range(count):
            folder = Path(job.folder) / str(number)
            folder.mkdir()
            own = replace(job, instance=str(number), folder=str(folder))
            argv, env = command("engine", own)
            processes.append(stack.enter_context(bench.running(f"{job.name}-{number}", argv, env)))
        processes[0].wait_until_written(bench.kafka, job.output, workload.events)
        for process in processes[1:]:
            process.sample()
        loads = [process.load() for process in processes]
    # The first process may own all partitions for a while, so more of the beginning is left out.
    rate = checked_rate(bench, job, workload, round(SHARED_AFTER * workload.events))
    bench.clean(job.name, Path(job.folder))
    return {
        "events_per_s": round(rate, 1),
        "events": workload.events,
        "cpu_s": round(sum(load["cpu_s"] for load in loads), 2),
        "rss_peak_mb": max(load["rss_peak_mb"] for load in loads),
        # To the first process, the others are foreign.
        "foreign_cores": 0.0 if count > 1 else loads[0]["foreign_cores"],
    }


def checked_rate(bench: BenchmarkRun, job: Job, workload: Workload, skip: int, *, raw: bool = False) -> float:
    """Check all outputs, and return outputs per second without the first `skip`. Raises `WrongResult`."""
    times: list[int] = []

    def values() -> Sequence[bytes]:
        outputs = []
        for message in bench.kafka.read(job.output):
            times.append(message.timestamp()[1])
            outputs.append(message_value(message))
        return outputs

    errors = workload.find_errors(values(), orjson.loads, raw=raw)
    if dead := sum(bench.kafka.ends(job.dead_letters).values()):
        errors.append(f"{dead} dead letters")
    if errors:
        raise WrongResult(f"{job.name}: of {workload.events} events: {', '.join(errors)}")
    return records_per_second(times, skip)


def quixstreams_python() -> Path:
    """Return the interpreter of the quixstreams environment, creating it from its hashed lock file if missing."""
    interpreter = QUIXSTREAMS / "bin" / "python"
    facts = {"lock": LOCK.read_text(), "python": sys.version}
    with exclusive_lock(QUIXSTREAMS.with_name("quixstreams.lock")):
        if is_complete(QUIXSTREAMS, facts):
            return interpreter
        uv = find_uv(PREPARED)
        if uv is None:
            raise StackError("uv is missing; run `make install` to install it.")
        print("quixstreams: installing it into a separate environment", flush=True)
        with atomic_dir(QUIXSTREAMS, facts) as part:
            _install(uv, part)
    return interpreter


def _install(uv: str, folder: Path) -> None:
    into = str(folder.resolve())
    steps = (
        # Relocatable, because the folder is renamed when it is complete.
        ["venv", "--quiet", "--clear", "--relocatable", "--python", sys.executable, into],
        [
            "pip",
            "install",
            "--quiet",
            "--require-hashes",
            "--python",
            f"{into}/bin/python",
            "--requirements",
            str(LOCK),
        ],
    )
    for number, arguments in enumerate(steps):
        program = Program(f"quixstreams-{number}", [uv, *arguments])
        status, output = run_job(program, QUIXSTREAMS.parent / "jobs")
        if status != 0:
            raise StackError(f"quixstreams could not be installed:\n{output}")
