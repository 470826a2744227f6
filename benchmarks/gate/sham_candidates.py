"""Candidates that learned nothing from users, really trained and sent through the real gate with a control.

    python -m benchmarks.gate.sham_candidates

They train on the world `knowledge`, of which the demo's base knows about half: there noise wins most. Users ask and
judge as in `benchmarks/worlds`, and the snapshot is taken as always. Then its rows lose what users said:

- `permuted`: answers are exchanged among question groups.
- `base`: the base's own answers take the place of the corrections.

How many pass with and without the control is written to `sham_candidates` in `benchmarks/gate.json`. Hours; resumable.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.console import Console

from benchmarks import resumable, trainer_run
from benchmarks.resumable import RESULT, FolderOption, QuickOption, ResumableBenchmark
from benchmarks.trainer_run import PREPARED, GenerationTask, StageCallback, TrainerRun, find_benchmark_base
from benchmarks.worlds import users
from benchmarks.worlds.users import BaseAnswer
from benchmarks.worlds.world import DATA, load_world
from services.trainer.core.recipe import Recipe
from services.trainer.dataset import snapshot_files
from services.trainer.dataset.filters import GroupedRow
from services.trainer.dataset.snapshot_files import HELDOUT_ROWS, Snapshot
from services.trainer.files import write_whole
from services.trainer.gate.control_rows import control_rows
from services.trainer.progress import Progress
from services.trainer.run.context import RunContext
from services.trainer.run.folder import CONFIG, GATE_RESULT
from services.trainer.run.run_table import RunConfig
from services.trainer.settings import TrainerSettings
from services.trainer.worker.pipeline import take_snapshot
from shared.adapters.in_memory import InMemoryCache
from shared.events import sha256
from shared.settings import load
from shared.versions import GateReport

RESULTS: Final = Path(__file__).parent.with_name("gate.json")
WORLD: Final = "knowledge"
EXAMPLES, QUICK_EXAMPLES = 700, 60
"""Examples of users who are not held out; held-out users give a quarter more."""
ANSWER_TOKENS: Final = 40
KINDS: Final = ("permuted", "base")
CANDIDATES: Final = 20
FEW: Final[dict[str, Any]] = {
    "gate_eval_prompts": 40,
    "gate_safety_prompts": 10,
    "gate_skill_prompts": 4,
}
"""Metrics that can only fail a candidate see few questions here, which makes passing easier."""
TINY: Final[dict[str, Any]] = {
    "rank": 4,
    "epochs": 1.0,
    "replay_prompts": 4,
    "replay_new_tokens": 6,
    "gate_new_tokens": 6,
    "gate_eval_prompts": 8,
    "gate_safety_prompts": 4,
    "gate_skill_prompts": 1,
}


@dataclass(frozen=True, slots=True)
class Sham:
    """A candidate that learned nothing from users."""

    kind: Literal["permuted", "base"]
    seed: int

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{self.kind}-{self.seed}"


def shams(count: int) -> list[Sham]:
    """Return so many candidates, of each kind as many."""
    return [Sham(KINDS[number % len(KINDS)], 1 + number // len(KINDS)) for number in range(count)]


def without_feedback(rows: Sequence[GroupedRow], sham: Sham) -> list[GroupedRow]:
    """Return the rows that a sham candidate trains."""
    if sham.kind == "permuted":
        return control_rows(rows, frozenset(), sham.seed)
    return [
        replace(one, row=replace(one.row, answer=one.row.original, unended=one.row.original_unended))
        if one.row.kind == "correction"
        else one
        for one in rows
    ]


def run_sham(bench: ResumableBenchmark, sham: Sham, callback: StageCallback) -> dict[str, Any]:
    """Train and gate one candidate and return its result.

    Raises:
        ProcessFailed: A process of it failed.
    """
    started = time.monotonic()
    world = load_world(WORLD)
    folder = bench.arm_folder(sham)
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"threads": bench.threads, "seed": sham.seed, "gate_control": "always"}
    recipe = Recipe(**settings | FEW | (TINY if bench.quick else {}))
    run = TrainerRun(folder / "data", world.line, bench.base, recipe, bench.replay, f"sham: {sham.key}")
    questions = users.asked(world, sham.seed, QUICK_EXAMPLES if bench.quick else EXAMPLES)
    callback("answers of the base", 0.0)
    answers = trainer_run.generate(
        bench.base.path,
        None,
        bench.threads,
        GenerationTask([item.conversation for item in questions], ANSWER_TOKENS),
        bench.folder / f"asked-{sham.seed}.json",
    )
    given = users.feedback(world, sham.seed, questions, [BaseAnswer(*answer) for answer in answers.greedy])
    run.prepare(given)
    if not snapshot_files.is_complete(run.folder):
        _take_snapshot(run, sham)
    run.execute(given, callback)
    report = GateReport.model_validate_json((run.folder / GATE_RESULT).read_bytes())
    result = {
        "kind": sham.kind,
        "seed": sham.seed,
        "verdict": report.verdict,
        "reasons": list(report.reasons),
        "alpha": report.alpha,
        "test": None if report.test is None else report.test.model_dump(),
        "control": None if report.control is None else report.control.model_dump(),
        "rows": snapshot_files.read_ref(run.folder).examples,
        "seconds": round(time.monotonic() - started, 1),
        "code": resumable.code_digest(Path(__file__).parent),
    }
    write_whole(folder / RESULT, (json.dumps(result, indent=1) + "\n").encode())
    return result


def _take_snapshot(run: TrainerRun, sham: Sham) -> None:
    """Write the run's snapshot as its process would, with rows that say nothing."""
    os.environ.update(run.environment)
    config = RunConfig.from_json((run.folder / CONFIG).read_text(encoding="utf-8"))
    progress = Progress(InMemoryCache(), run.line, config.run_id)
    take_snapshot(RunContext(run.folder, config, load(TrainerSettings), progress, threading.Event()))
    ref = snapshot_files.read_ref(run.folder)
    rows = without_feedback(snapshot_files.read_rows(run.folder), sham)
    held_out = snapshot_files.read_rows(run.folder, HELDOUT_ROWS)
    snapshot_files.write(
        run.folder, Snapshot(tuple(rows), tuple(held_out), (), config.through), tokens=ref.tokens
    )


def passes(test: dict[str, Any] | None, alpha: float | None) -> bool:
    """Return whether a test of votes passes."""
    return test is not None and alpha is not None and max(test["p_users"], test["p_groups"]) <= alpha


def summary(bench: ResumableBenchmark, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of all candidates that are done."""
    ahead = [one for one in results if passes(one["test"], one["alpha"])]
    return {
        "model": bench.base.name,
        "world": WORLD,
        "candidates": len(results),
        "passed": sum(one["verdict"] == "passed" for one in results),
        "ahead_of_stable": len(ahead),
        "ahead_of_stable_and_control": sum(passes(one["control"], one["alpha"]) for one in ahead),
        "by_kind": {
            kind: {
                "candidates": sum(one["kind"] == kind for one in results),
                "ahead_of_stable": sum(one["kind"] == kind for one in ahead),
                "passed": sum(one["kind"] == kind and one["verdict"] == "passed" for one in results),
            }
            for kind in KINDS
        },
        "each": results,
    }


def main(
    candidates: Annotated[int, typer.Option(help="Number of candidates.", min=1)] = CANDIDATES,
    quick: QuickOption = False,
    folder: FolderOption = PREPARED / "sham",
    output: Annotated[Path | None, typer.Option(help="File with the field `sham_candidates`.")] = None,
) -> None:
    """Train and gate the candidates that have no result yet (hours), and write how many passed."""
    console = Console()
    base = find_benchmark_base("", quick)
    data = [sha256((DATA / f"{WORLD}.json").read_bytes()), EXAMPLES]
    own, replay = resumable.prepare_folders(folder, data, base, quick)
    bench = ResumableBenchmark(own, base, replay, quick)
    target = output or (bench.folder / "gate.json" if quick else RESULTS)

    def write() -> None:
        results = [json.loads(file.read_bytes()) for file in sorted(bench.folder.glob(f"*/{RESULT}"))]
        known = json.loads(target.read_bytes()) if target.exists() else {}
        known["sham_candidates"] = summary(bench, results)
        write_whole(target, (json.dumps(known, indent=1) + "\n").encode())

    with resumable.exit_codes(console):
        left = resumable.arms_left(bench, shams(candidates), console)
        resumable.run_arms(left, lambda sham, show: run_sham(bench, sham, show), console, after_arm=write)
    write()
    figures = json.loads(target.read_bytes())["sham_candidates"]
    console.print(
        f"{figures['candidates']} candidates: {figures['ahead_of_stable']} ahead of stable, "
        f"{figures['ahead_of_stable_and_control']} of them ahead of the control, {figures['passed']} passed. "
        f"Results: {target}"
    )


if __name__ == "__main__":
    typer.run(main)
