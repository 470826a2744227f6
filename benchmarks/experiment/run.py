"""Runs one arm with one seed: simulated feedback, a run of the trainer, answers of the version, and the result.

The batches are stored in the trainer's own table, and the trainer's own process does the rest. Each step is skipped if
its file exists, and a run resumes from its newest checkpoint, so little is lost if the experiment is killed. The
result is written last.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import trainer_run
from benchmarks.experiment import facts_scenario, style_scenario
from benchmarks.experiment.arms import LINES, QUICK_RECIPE, Arm, Sizes
from benchmarks.make_batches import UserFeedback
from benchmarks.resumable import RESULT, ResumableBenchmark, code_digest
from benchmarks.trainer_run import GenerationTask, StageCallback, TrainerRun
from examples.world import is_poisoned, load_world
from services.trainer.core.recipe import Recipe
from services.trainer.dataset import snapshot_files
from services.trainer.files import write_whole
from services.trainer.run.folder import ADAPTER, ARTIFACT

PACKAGE: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Experiment(ResumableBenchmark):
    """An experiment of some size."""

    sizes: Sizes

    def recipe(self, arm: Arm) -> Recipe:
        """Return the recipe of an arm."""
        own = dict(self.sizes.recipes)[arm.scenario]
        return Recipe(
            **{"threads": self.threads, "seed": arm.seed} | own | (QUICK_RECIPE if self.quick else {})
        )


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
        "code": code_digest(PACKAGE),
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
    callback("answers of the base", 0.0)
    return _generate(experiment, experiment.folder / "base", name, None, arm.seed, greedy, sampled)


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
    callback("measuring", 0.0)
    return _generate(experiment, experiment.arm_folder(arm), "answers", adapter, arm.seed, greedy, sampled)


def _generate(
    experiment: Experiment,
    folder: Path,
    name: str,
    adapter: Path | None,
    seed: int,
    greedy: list[str],
    sampled: list[tuple[str, int]],
) -> dict[str, Any]:
    sizes = experiment.sizes
    task = GenerationTask(
        [(("user", question),) for question in greedy],
        sizes.answer_tokens,
        sampled,
        sizes.sample_tokens,
        seed,
    )
    answers = trainer_run.generate(
        experiment.base.path, adapter, experiment.threads, task, folder / f"{name}.json"
    )
    texts = {question: text for question, (text, _) in zip(greedy, answers.greedy, strict=True)}
    return {"greedy": texts, "sampled": answers.sampled}


# --- a run of the trainer -------------------------------------------------------------------------------------------


def train(experiment: Experiment, arm: Arm, feedback: list[UserFeedback], callback: StageCallback) -> Path:
    """Run the trainer on the feedback, and return the folder of the ended run.

    Raises:
        ProcessFailed: The run did not end.
    """
    run = TrainerRun(
        experiment.arm_folder(arm) / "data",
        LINES[arm.scenario],
        experiment.base,
        experiment.recipe(arm),
        experiment.replay,
        f"experiment: {arm.key}",
    )
    run.execute(feedback, callback)
    return run.folder


def summarise_run(run: Path) -> dict[str, Any]:
    """Return what the run trained, how much of it was poison, and the verdict of the gate."""
    facts = load_world().facts
    rows = [grouped.row for grouped in snapshot_files.read_rows(run)]
    poisoned = sum(is_poisoned(row.answer, fact) for row in rows for fact in facts)
    return {"poison_trained": poisoned} | trainer_run.summarise_run(run)
