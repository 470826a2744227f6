"""Runs one arm with one seed: simulated feedback, a run of the trainer, answers of the version, and the result.

The batches are stored in the trainer's own table, and the trainer's own process does the rest. Each step is skipped if
its file exists, and a run resumes from its newest checkpoint, so little is lost if the experiment is killed. The
result is written last.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import services.trainer
from benchmarks.experiment import facts_scenario, style_scenario
from benchmarks.experiment.arms import LINES, QUICK_RECIPE, Arm, Sizes
from benchmarks.experiment.make_batches import START, UserFeedback, cut_batches, example_revisions
from examples.world import is_poisoned, load_world
from services.trainer.core.recipe import Recipe
from services.trainer.database import open_database
from services.trainer.dataset import batch_table, snapshot_files
from services.trainer.files import write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import ADAPTER, ARTIFACT, CONFIG, FAILURE_REASON, GATE_RESULT, RUN_LOG
from services.trainer.run.run_table import RunConfig
from services.trainer.worker import launcher
from shared.adapters.base_model import PinnedBase
from shared.events import sha256, to_ms
from shared.versions import GateReport

PREPARED = Path(".loopwright")
RESULT: Final = "result.json"
RUN_ID: Final = "run-1"
MAX_STARTS: Final = 3
"""How often the process of a run is started before the arm fails."""
POLL_S: Final = 0.5
UNREACHABLE_REDIS: Final = "redis://127.0.0.1:1/0"
"""No Redis is needed: progress is read from the run's log."""
StageCallback = Callable[[str, float], None]
"""Called with (stage, share done)."""


class ProcessFailed(Exception):
    """A process of the experiment ended unexpectedly. The message names its log."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """Where an experiment is stored, on which base, and how large it is.

    Attributes:
        folder: Folder of all arms.
        base: The base model.
        sizes: Sizes of the experiment.
        replay: Cache of the base's answers to shipped prompts.
        quick: Whether this is the quick form, with the tiny model.
    """

    folder: Path
    base: PinnedBase
    sizes: Sizes
    replay: Path
    quick: bool = False

    def arm_folder(self, arm: Arm) -> Path:
        """Return the folder of an arm."""
        return self.folder / arm.key

    def result(self, arm: Arm) -> dict[str, Any] | None:
        """Return the result of an arm, or None if it is not done."""
        file = self.arm_folder(arm) / RESULT
        return json.loads(file.read_bytes()) if file.exists() else None

    @property
    def threads(self) -> int:
        """Threads of torch."""
        return 1 if self.quick else len(os.sched_getaffinity(0))

    def recipe(self, arm: Arm) -> Recipe:
        """Return the recipe of an arm."""
        own = dict(self.sizes.recipes)[arm.scenario]
        return Recipe(
            **{"threads": self.threads, "seed": arm.seed} | own | (QUICK_RECIPE if self.quick else {})
        )


def code_digest() -> str:
    """Return a digest of the trainer's code and the experiment's, to mark results of different code."""
    return sha256(b"".join(path.read_bytes() for path in source_files()))[:8]


def source_files() -> list[Path]:
    """Return the files that `code_digest` covers."""
    roots = (Path(services.trainer.__file__).parent, Path(__file__).parent)
    return [path for root in roots for path in sorted(root.rglob("*.py"))]


def run_arm(experiment: Experiment, arm: Arm, callback: StageCallback) -> dict[str, Any]:
    """Run the remaining steps of an arm and return its result.

    Raises:
        ProcessFailed: A process of the arm failed.
    """
    done = experiment.result(arm)
    if done is not None:
        return done
    started = time.monotonic()
    base = base_answers(experiment, arm, callback)
    result: dict[str, Any] = {
        "arm": arm.name,
        "world": arm.scenario,
        "seed": arm.seed,
        "code": code_digest(),
    }
    answers = base
    if arm.trains:
        run = train(experiment, arm, simulate_feedback(experiment, arm, base), callback)
        result |= summarise_run(run)
        answers = version_answers(experiment, arm, run, callback)
        shutil.rmtree(run / ARTIFACT, ignore_errors=True)
    if arm.scenario == "facts":
        result["facts"] = facts_scenario.judge_answers(arm, experiment.sizes, answers["greedy"])
    else:
        max_words = style_scenario.max_liked_words(experiment.sizes, base["sampled"])
        result["most_words"] = max_words
        result["style"] = style_scenario.judge_answers(experiment.sizes, answers["sampled"], max_words)
    result["seconds"] = round(time.monotonic() - started, 1)
    write_whole(experiment.arm_folder(arm) / RESULT, json.dumps(result, indent=1).encode())
    return result


def simulate_feedback(experiment: Experiment, arm: Arm, base: Mapping[str, Any]) -> list[UserFeedback]:
    """Return the feedback of an arm's users. `base` are the base's answers."""
    if arm.scenario == "facts":
        return facts_scenario.simulate_feedback(arm, experiment.sizes, base["greedy"])
    return style_scenario.simulate_feedback(arm, experiment.sizes, base["sampled"])


# --- answers --------------------------------------------------------------------------------------------------------


def base_answers(experiment: Experiment, arm: Arm, callback: StageCallback) -> dict[str, Any]:
    """Return the base's answers to what the users ask and to the held-out questions.

    All arms of a scenario share them, if they have the same seed.
    """
    sizes = experiment.sizes
    greedy: list[str] = []
    sampled: list[tuple[str, int]] = []
    if arm.scenario == "facts":
        facts = facts_scenario.facts_of_arm(arm, sizes)
        greedy = sorted({wording for fact in facts for wording in fact.wordings})
    else:
        asked = style_scenario.prompts()["asked"][: sizes.questions]
        sampled = [(question, sizes.samples) for question in asked]
        sampled += [(question, sizes.measured) for question in style_scenario.held_out_questions(sizes)]
    name = f"base-{arm.scenario}-{arm.seed}"
    return _generate(experiment, experiment.folder / "base", name, None, arm.seed, greedy, sampled, callback)


def version_answers(experiment: Experiment, arm: Arm, run: Path, callback: StageCallback) -> dict[str, Any]:
    """Return the answers of the run's version to the held-out questions, even if it failed the gate.

    If the run ended before training, the answers are the base's.
    """
    sizes = experiment.sizes
    adapter = run / ADAPTER if (run / ADAPTER).exists() else None
    greedy: list[str] = []
    sampled: list[tuple[str, int]] = []
    if arm.scenario == "facts":
        greedy = [wording for wording, _ in facts_scenario.held_out_questions(arm, sizes)]
    else:
        sampled = [(question, sizes.measured) for question in style_scenario.held_out_questions(sizes)]
    return _generate(
        experiment, experiment.arm_folder(arm), "answers", adapter, arm.seed, greedy, sampled, callback
    )


def _generate(
    experiment: Experiment,
    folder: Path,
    name: str,
    adapter: Path | None,
    seed: int,
    greedy: list[str],
    sampled: list[tuple[str, int]],
    callback: StageCallback,
) -> dict[str, Any]:
    output, task_file = folder / f"{name}.json", folder / f"{name}.task.json"
    if not output.exists():
        task = {
            "base": str(experiment.base.path),
            "adapter": None if adapter is None else str(adapter),
            "threads": experiment.threads,
            "seed": seed,
            "greedy": greedy,
            "tokens": experiment.sizes.answer_tokens,
            "sampled": sampled,
            "sampled_tokens": experiment.sizes.sample_tokens,
        }
        write_whole(task_file, json.dumps(task, ensure_ascii=False).encode())
        callback("answers", 0.0)
        run_module("generate", folder / f"{name}.log", str(task_file), str(output))
    answers: dict[str, Any] = json.loads(output.read_bytes())
    return answers


def run_module(name: str, log: Path, *arguments: str) -> None:
    """Run a module of the experiment in a process with the environment of a run.

    Raises:
        ProcessFailed: The process failed.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.experiment.{name}", *arguments],
            env=launcher.process_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    if wait_for(process, lambda: None) != 0:
        raise ProcessFailed(f"{name} ended with status {process.returncode}: see {log}")


def wait_for(process: subprocess.Popen[bytes], poll: Callable[[], None]) -> int:
    """Return the exit status of a process, and call `poll` while it runs.

    If interrupted, stop the process and let it save a checkpoint.
    """
    try:
        while True:
            try:
                return process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                poll()
    except BaseException:
        launcher.stop(process)
        raise


# --- a run of the trainer -------------------------------------------------------------------------------------------


def train(experiment: Experiment, arm: Arm, feedback: list[UserFeedback], callback: StageCallback) -> Path:
    """Run the trainer on the feedback, and return the folder of the ended run.

    Raises:
        ProcessFailed: The run did not end within `MAX_STARTS` starts of its process.
    """
    line, data = LINES[arm.scenario], experiment.arm_folder(arm) / "data"
    trainer_folder = data / "trainer" / line
    folder = trainer_folder / "runs" / RUN_ID
    _prepare_run(experiment, arm, feedback, trainer_folder, folder)
    os.environ.update(
        {
            "LOOPWRIGHT_LINE": line,
            "LOOPWRIGHT_DATA_DIR": str(data),
            "LOOPWRIGHT_ARTIFACTS": str(experiment.arm_folder(arm) / "artifacts"),
            "LOOPWRIGHT_TRAINER_REPLAY": str(experiment.replay),
            "REDIS_URL": UNREACHABLE_REDIS,
        }
    )
    for _ in range(MAX_STARTS):
        if (folder / GATE_RESULT).exists() or (folder / FAILURE_REASON).exists():
            break
        wait_for(launcher.start_run(folder), lambda: callback(*run_progress(folder / RUN_LOG)))
    else:
        raise ProcessFailed(f"the run did not end: see {folder / RUN_LOG}")
    return folder


def _prepare_run(
    experiment: Experiment, arm: Arm, feedback: list[UserFeedback], trainer_folder: Path, folder: Path
) -> None:
    """Store the batches and write the run's configuration, as the trainer's service does."""
    if (folder / CONFIG).exists():
        return
    line = LINES[arm.scenario]
    stable = experiment.base.ref(line)
    db = open_database(trainer_folder)
    with db:
        for batch in cut_batches(line, example_revisions(line, stable.version, feedback)):
            batch_table.store_batch(db, batch)
    config = RunConfig(
        run_id=RUN_ID,
        line=line,
        through=batch_table.through(db),
        recipe=experiment.recipe(arm),
        base=str(experiment.base.path),
        base_name=experiment.base.name,
        base_digest=experiment.base.digest,
        stable=stable,
        stable_run=None,
        created_ms=to_ms(START),
    )
    if run_table.open_run(db) is None:
        with db:
            run_table.begin(db, config, f"experiment: {arm.key}")
    db.close()
    write_whole(folder / CONFIG, config.to_json().encode())


def run_progress(log: Path) -> tuple[str, float]:
    """Return (stage, share done) from the newest progress line in a run's log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    newest: dict[str, Any] = next(
        (json.loads(line) for line in reversed(lines) if '"run_progress"' in line and line[0] == "{"), {}
    )
    return str(newest.get("stage", "starting")), float(newest.get("share", 0.0))


def summarise_run(run: Path) -> dict[str, Any]:
    """Return what the run trained, and the verdict of the gate."""
    mark = json.loads((run / snapshot_files.SNAPSHOT).read_bytes())
    rows = [grouped.row for grouped in snapshot_files.read_rows(run)]
    facts = load_world().facts
    summary: dict[str, Any] = {
        "trained": len(rows),
        "measuring": mark["measuring"],
        "held": mark["held"],
        "objectives": {kind: sum(row.objective == kind for row in rows) for kind in ("sft", "kto")},
        "poison_trained": sum(is_poisoned(row.answer, fact) for row in rows for fact in facts),
    }
    if (run / FAILURE_REASON).exists():
        reason = (run / FAILURE_REASON).read_text(encoding="utf-8")
        return summary | {"verdict": "not trained", "reasons": [reason]}
    report = GateReport.model_validate_json((run / GATE_RESULT).read_bytes())
    figures = {figure.name: figure.model_dump(exclude_none=True) for figure in report.figures}
    return summary | {"verdict": report.verdict, "reasons": list(report.reasons), "gate": figures}
