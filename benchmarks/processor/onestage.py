"""The one-stage job in each arm: run, checked, then timed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import orjson

from benchmarks.processor.harness import Lab, cache_mb, python
from benchmarks.processor.job import Job
from benchmarks.processor.kafka_client import WrongResult, rate, value_of
from benchmarks.processor.votes import Workload
from deploy.local.atomic_dirs import is_ready, only_one, written_whole
from deploy.local.errors import StackError
from deploy.local.processes import Program
from deploy.local.run_job import run_job

Arm = Literal["raw", "engine", "faust", "quixstreams"]
COMPACT = {"cleanup.policy": "compact"}
WARM_UP = 0.1
"""The share of the outputs, from the first on, that is not counted: start, joining the group, first fetches."""
LOCK = Path(__file__).with_name("quixstreams.txt")
QUIXSTREAMS = Path(".loopwright/bench/quixstreams")


def new_job(lab: Lab, arm: str, workload: Workload, source: str | None = None) -> Job:
    """A job over this workload (or the topic `source`), with its topics made."""
    name, folder = lab.fresh(arm)
    job = Job(
        kafka=lab.broker.address,
        name=name,
        input=source or lab.input(workload),
        output=f"{name}-out",
        changelog=f"{name}-changelog",
        dead_letters=f"{name}-dead",
        folder=str(folder),
        partitions=lab.partitions,
        cache_mb=cache_mb(workload.keys),
    )
    lab.log.create({job.output: {}, job.changelog: COMPACT, job.dead_letters: {}}, lab.partitions)
    return job


def command(arm: Arm, job: Job) -> tuple[Sequence[str], Mapping[str, str]]:
    """What to run, and what its environment needs."""
    if arm == "quixstreams":
        script = Path("benchmarks/processor/jobs/quix.py")
        return [str(quixstreams_python()), str(script), job.to_json()], {"PYTHONPATH": str(Path.cwd())}
    module = {"raw": "raw", "engine": "engine", "faust": "faust_agent"}[arm]
    return python(f"benchmarks.processor.jobs.{module}", job.to_json()), {}


def measure(lab: Lab, arm: Arm, events: int) -> dict[str, float]:
    """Events a second of one arm. Raises `WrongResult` unless each has exactly one output, rightly counted."""
    workload = Workload.halves(events)
    job = new_job(lab, arm, workload)
    argv, env = command(arm, job)
    with lab.running(job.name, argv, env) as running:
        running.until_written(lab.log, job.output, workload.events)
        load = running.load()
    found = checked_rate(lab, job, workload, round(WARM_UP * workload.events), raw=arm == "raw")
    lab.clean(job.name, Path(job.folder))
    return {"events_per_s": round(found, 1), "events": workload.events, **load}


def checked_rate(lab: Lab, job: Job, workload: Workload, skip: int, *, raw: bool = False) -> float:
    """Outputs a second after the first `skip`, if all are as they must be."""
    times: list[int] = []

    def values() -> Sequence[bytes]:
        found = []
        for message in lab.log.read(job.output):
            times.append(message.timestamp()[1])
            found.append(value_of(message))
        return found

    complaints = workload.complaints(values(), orjson.loads, raw=raw)
    if dead := sum(lab.log.ends(job.dead_letters).values()):
        complaints.append(f"{dead} dead letters")
    if complaints:
        raise WrongResult(f"{job.name}: of {workload.events} events: {', '.join(complaints)}")
    return rate(times, skip)


def quixstreams_python() -> Path:
    """The interpreter of quixstreams' environment, which is made from its hashed lock if it is not there."""
    found = QUIXSTREAMS / "bin" / "python"
    facts = {"lock": LOCK.read_text(), "python": sys.version}
    with only_one(QUIXSTREAMS.with_name("quixstreams.lock")):
        if is_ready(QUIXSTREAMS, facts):
            return found
        uv = shutil.which("uv") or shutil.which(Path(".loopwright/uv/bin/uv"))
        if uv is None:
            raise StackError("uv is missing: `make install` puts it in place.")
        print("quixstreams: installing it into an environment of its own", flush=True)
        with written_whole(QUIXSTREAMS, facts) as part:
            _install(uv, part)
    return found


def _install(uv: str, folder: Path) -> None:
    into = str(folder.resolve())
    steps = (
        # Relocatable: it is renamed once it is whole.
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
        status, said = run_job(program, QUIXSTREAMS.parent / "jobs")
        if status != 0:
            raise StackError(f"quixstreams could not be installed:\n{said}")
