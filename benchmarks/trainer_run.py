"""Runs of the trainer for benchmarks: the trainer's own process, on batches that are stored in the trainer's own table.

A run resumes from its newest checkpoint, so little is lost if a benchmark is killed. Nothing but the run's folder is
used: no Kafka, no service, no Redis.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psutil
import typer

from benchmarks.make_batches import START, UserFeedback, cut_batches, example_revisions
from deploy.local.model import ensure_base_model, ensure_tiny_model
from services.trainer.core.chat import Messages
from services.trainer.core.decoding import Decoding
from services.trainer.core.recipe import Recipe
from services.trainer.database import open_database
from services.trainer.dataset import batch_table, snapshot_files
from services.trainer.files import write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import CONFIG, FAILURE_REASON, GATE_RESULT, RUN_LOG
from services.trainer.run.run_table import RunConfig
from services.trainer.worker import launcher
from shared.adapters.base_model import PinnedBase, find_base
from shared.errors import Misconfigured
from shared.events import to_ms
from shared.versions import GateReport

PREPARED: Final = Path(".loopwright")
"""Folder of the local stack's models, and of the runs of benchmarks."""
RUN_ID: Final = "run-1"
MAX_STARTS: Final = 8
"""How often a process of a run is started before it fails. A run without interruptions needs two, or four with a
control."""
POLL_S: Final = 0.5
UNREACHABLE_REDIS: Final = "redis://127.0.0.1:1/0"
"""No Redis is needed: progress is read from the run's log."""
StageCallback = Callable[[str, float], None]
"""Called with (stage, share done)."""


class ProcessFailed(Exception):
    """A process of a benchmark ended unexpectedly. The message names its log."""


def find_benchmark_base(name: str, quick: bool) -> PinnedBase:
    """Return the base with this name or in this folder; by default the demo's, or the tiny one for a quick run.

    Settings of a deployment in this shell are removed from the environment, so they do not change the benchmark.

    Raises:
        typer.Exit: There is no such base. The reason was printed.
    """
    wanted = name or os.environ.get("LOOPWRIGHT_BASE_MODEL", "")
    for variable in [variable for variable in os.environ if variable.startswith("LOOPWRIGHT_")]:
        del os.environ[variable]
    try:
        return find_base(wanted or str((ensure_tiny_model if quick else ensure_base_model)(PREPARED, print)))
    except Misconfigured as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None


# --- processes ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class PeakMemory:
    """Largest resident memory of a process and its children, sampled while they run, in bytes."""

    value: int = 0

    def sample(self, pid: int) -> None:
        """Add a sample. A process that ends meanwhile counts nothing."""
        try:
            process = psutil.Process(pid)
            resident = sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
        except psutil.Error:
            return
        self.value = max(self.value, resident)


def run_module(module: str, log: Path, *arguments: str, memory: PeakMemory | None = None) -> None:
    """Run a module in a process with the environment of a run.

    Args:
        module: Full name of the module.
        log: File to which its output is appended.
        arguments: Arguments of the module.
        memory: Records the peak memory.

    Raises:
        ProcessFailed: The process failed.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=launcher.process_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    if wait_for(process, lambda: None, memory) != 0:
        raise ProcessFailed(f"{module} ended with status {process.returncode}: see {log}")


def wait_for(
    process: subprocess.Popen[bytes], poll: Callable[[], None], memory: PeakMemory | None = None
) -> int:
    """Return the exit status of a process, and call `poll` while it runs.

    If interrupted, stop the process and let it save a checkpoint.
    """
    try:
        while True:
            try:
                return process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                poll()
                if memory is not None:
                    memory.sample(process.pid)
    except BaseException:
        launcher.stop(process)
        raise


# --- answers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """What `benchmarks.generate` answers.

    Attributes:
        greedy: Conversations that are answered greedily.
        tokens: Longest greedy answer.
        sampled: Questions, each with the number of sampled answers.
        sampled_tokens: Longest sampled answer.
        seed: Seed of sampling.
        drawn: Conversations that are answered once in each of `draws`.
        draws: How those answers are decoded.
        drawn_tokens: Longest of those answers.
    """

    greedy: Sequence[Messages] = ()
    tokens: int = 40
    sampled: Sequence[tuple[str, int]] = ()
    sampled_tokens: int = 40
    seed: int = 1
    drawn: Sequence[Messages] = ()
    draws: Sequence[Decoding] = ()
    drawn_tokens: int = 24


@dataclass(frozen=True, slots=True)
class GeneratedAnswers:
    """Answers to a `GenerationTask`.

    Attributes:
        greedy: (answer, whether the model ended it) of each conversation, in order.
        sampled: Sampled answers by question.
        drawn: For each draw, the answer to each conversation, in order.
    """

    greedy: list[tuple[str, bool]]
    sampled: dict[str, list[str]] = field(default_factory=dict)
    drawn: list[list[str]] = field(default_factory=list)


def generate(
    base: Path, adapter: Path | None, threads: int, task: GenerationTask, output: Path
) -> GeneratedAnswers:
    """Return the answers of a version, generated in a process of its own, or those that `output` already has.

    Args:
        base: Folder of the base.
        adapter: Folder of the version's adapter; None for the base itself.
        threads: Threads of torch.
        task: What to answer.
        output: JSON file of the answers. Task and log are written next to it.

    Raises:
        ProcessFailed: The process failed.
    """
    if not output.exists():
        task_file = output.with_suffix(".task.json")
        content = {
            "base": str(base),
            "adapter": None if adapter is None else str(adapter),
            "threads": threads,
            "seed": task.seed,
            "greedy": task.greedy,
            "tokens": task.tokens,
            "sampled": task.sampled,
            "sampled_tokens": task.sampled_tokens,
            "drawn": task.drawn,
            "draws": [(one.temperature, one.draw) for one in task.draws],
            "drawn_tokens": task.drawn_tokens,
        }
        write_whole(task_file, json.dumps(content, ensure_ascii=False).encode())
        run_module("benchmarks.generate", output.with_suffix(".log"), str(task_file), str(output))
    answers = json.loads(output.read_bytes())
    greedy = [(text, ended) for text, ended in answers["greedy"]]
    return GeneratedAnswers(greedy, answers["sampled"], answers["drawn"])


# --- runs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainerRun:
    """A run of the trainer on given feedback.

    Attributes:
        data: The trainer's data folder.
        line: Name of the line. It keys the hold-out.
        base: The base model, which is also the stable version.
        recipe: How it trains.
        replay: Cache of the base's answers to shipped prompts.
        title: Shown as the reason of the run.
    """

    data: Path
    line: str
    base: PinnedBase
    recipe: Recipe
    replay: Path
    title: str

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.data / "trainer" / self.line / "runs" / RUN_ID

    def is_done(self) -> bool:
        """Return whether the run ended, with a verdict or a reason why it failed."""
        return (self.folder / GATE_RESULT).exists() or (self.folder / FAILURE_REASON).exists()

    def execute(
        self, feedback: Sequence[UserFeedback], callback: StageCallback, memory: PeakMemory | None = None
    ) -> None:
        """Run until the run has ended.

        Raises:
            ProcessFailed: It did not end within `MAX_STARTS` starts of its process.
        """
        self.prepare(feedback)
        log = self.folder / RUN_LOG
        os.environ.update(self.environment)
        for _ in range(MAX_STARTS):
            if self.is_done():
                break
            wait_for(launcher.start_run(self.folder), lambda: callback(*run_progress(log)), memory)
        if not self.is_done():
            raise ProcessFailed(f"the run did not end: see {log}")

    @property
    def environment(self) -> dict[str, str]:
        """Settings of the run's processes."""
        return {
            "LOOPWRIGHT_LINE": self.line,
            "LOOPWRIGHT_DATA_DIR": str(self.data),
            "LOOPWRIGHT_ARTIFACTS": str(self.data.parent / "artifacts"),
            "LOOPWRIGHT_TRAINER_REPLAY": str(self.replay),
            "REDIS_URL": UNREACHABLE_REDIS,
        }

    def prepare(self, feedback: Sequence[UserFeedback]) -> None:
        """Store the batches and write the run's configuration, as the trainer's service does."""
        if (self.folder / CONFIG).exists():
            return
        stable = self.base.ref(self.line)
        db = open_database(self.data / "trainer" / self.line)
        with db:
            for batch in cut_batches(self.line, example_revisions(self.line, stable.version, feedback)):
                batch_table.store_batch(db, batch)
        config = RunConfig(
            run_id=RUN_ID,
            line=self.line,
            through=batch_table.through(db),
            recipe=self.recipe,
            base=str(self.base.path),
            base_name=self.base.name,
            base_digest=self.base.digest,
            stable=stable,
            stable_run=None,
            created_ms=to_ms(START),
        )
        if run_table.open_run(db) is None:
            with db:
                run_table.begin(db, config, self.title)
        db.close()
        write_whole(self.folder / CONFIG, config.to_json().encode())


def progress_lines(log: Path, newest: int | None = None) -> list[dict[str, Any]]:
    """Return the progress lines of a run's log, in order, or only so many of the newest ones."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    wanted = [line for line in lines if '"run_progress"' in line and line[0] == "{"]
    return [json.loads(line) for line in (wanted if newest is None else wanted[-newest:])]


def run_progress(log: Path) -> tuple[str, float]:
    """Return (stage, share done) from the newest progress line in a run's log."""
    newest: dict[str, Any] = next(iter(progress_lines(log, newest=1)), {})
    return str(newest.get("stage", "starting")), float(newest.get("share", 0.0))


def stage_seconds(log: Path) -> dict[str, float]:
    """Return the seconds between the first progress line of each stage and that of the next one.

    The name of a stage ends at the first comma: `gate, candidate: answers` belongs to `gate`.
    """
    lines = progress_lines(log)
    seconds: dict[str, float] = {}
    for line, following in itertools.pairwise(lines):
        stage = str(line["stage"]).partition(",")[0]
        passed = datetime.fromisoformat(following["updated_at"]) - datetime.fromisoformat(line["updated_at"])
        seconds[stage] = seconds.get(stage, 0.0) + passed.total_seconds()
    return {stage: round(value, 1) for stage, value in seconds.items()}


def training_speed(log: Path) -> float | None:
    """Return the tokens per second of the newest start of a run's training, or None if it did not train."""
    speeds = [line["tokens_per_s"] for line in progress_lines(log) if line.get("tokens_per_s") is not None]
    return float(speeds[-1]) if speeds else None


def summarise_run(run: Path) -> dict[str, Any]:
    """Return what an ended run trained, and the verdict of the gate."""
    mark = json.loads((run / snapshot_files.SNAPSHOT).read_bytes())
    rows = [grouped.row for grouped in snapshot_files.read_rows(run)]
    summary: dict[str, Any] = {
        "trained": len(rows),
        "measuring": mark["measuring"],
        "held": mark["held"],
        "objectives": {kind: sum(row.objective == kind for row in rows) for kind in ("sft", "kto")},
    }
    if (run / FAILURE_REASON).exists():
        reason = (run / FAILURE_REASON).read_text(encoding="utf-8")
        return summary | {"verdict": "not trained", "reasons": [reason]}
    report = GateReport.model_validate_json((run / GATE_RESULT).read_bytes())
    figures = {figure.name: figure.model_dump(exclude_none=True) for figure in report.figures}
    return summary | {"verdict": report.verdict, "reasons": list(report.reasons), "gate": figures}
