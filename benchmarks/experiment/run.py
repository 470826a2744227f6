"""One arm with one seed: feedback, a run of the trainer, what the version says then, and the result, written last.

Every step is skipped where its file is there, and a run goes on from its newest checkpoint: a kill at any moment costs
little. The feedback is kept by the trainer's own table, and all that follows is the trainer's own process.
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
from benchmarks.experiment.make_batches import BEGAN, Said, batches, examples
from examples.world import is_poisoned, load_world
from services.trainer.core.recipe import Recipe
from services.trainer.database import open_database
from services.trainer.dataset import batch_table, snapshot
from services.trainer.files import write_whole
from services.trainer.run import run_table
from services.trainer.run.folder import ADAPTER, ARTIFACT, CONFIG, FAILURE_REASON, GATE_RESULT
from services.trainer.run.run_table import RunConfig
from services.trainer.worker import launcher
from shared.adapters.base_model import PinnedBase
from shared.events import sha256, to_ms
from shared.versions import GateReport

PREPARED = Path(".loopwright")
RESULT, HEARD, RUN_ID = "result.json", "heard.json", "run-1"
ATTEMPTS = 3
LOOK_S = 0.5
NOWHERE: Final = "redis://127.0.0.1:1/0"
"""Progress is read from the run's log."""
Tell = Callable[[str, float], None]
"""(stage, share done)"""


class Failed(Exception):
    """A process ended as none should; the message says where its words are."""


@dataclass(frozen=True, slots=True)
class Lab:
    """Where the experiment lies, on which base, how large. `replay`: the base's answers to shipped prompts."""

    folder: Path
    base: PinnedBase
    sizes: Sizes
    replay: Path
    quick: bool = False

    def of(self, arm: Arm) -> Path:
        return self.folder / arm.key

    def result(self, arm: Arm) -> dict[str, Any] | None:
        """None: not done yet."""
        file = self.of(arm) / RESULT
        return json.loads(file.read_bytes()) if file.exists() else None

    @property
    def threads(self) -> int:
        return 1 if self.quick else len(os.sched_getaffinity(0))

    def recipe(self, arm: Arm) -> Recipe:
        own = dict(self.sizes.recipes)[arm.world]
        return Recipe(
            **{"threads": self.threads, "seed": arm.seed} | own | (QUICK_RECIPE if self.quick else {})
        )


def code() -> str:
    """Names the trainer's source, and this one: results of different code are told apart."""
    return sha256(b"".join(path.read_bytes() for path in sources()))[:8]


def sources() -> list[Path]:
    roots = (Path(services.trainer.__file__).parent, Path(__file__).parent)
    return [path for root in roots for path in sorted(root.rglob("*.py"))]


def do(lab: Lab, arm: Arm, tell: Tell) -> dict[str, Any]:
    """The result of an arm, from its file where it is done."""
    done = lab.result(arm)
    if done is not None:
        return done
    began = time.monotonic()
    folder = lab.of(arm)
    base = base_says(lab, arm, tell)
    found: dict[str, Any] = {"arm": arm.name, "world": arm.world, "seed": arm.seed, "code": code()}
    heard = base
    if arm.trains:
        run = trained(lab, arm, feedback(lab, arm, base), tell)
        found |= of_run(run)
        heard = measured(lab, arm, run, tell)
        shutil.rmtree(run / ARTIFACT, ignore_errors=True)
    if arm.world == "facts":
        found["facts"] = facts_scenario.judged(arm, lab.sizes, heard["greedy"])
    else:
        found["most_words"] = style_scenario.bound(lab.sizes, base["sampled"])
        found["style"] = style_scenario.judged(lab.sizes, heard["sampled"], found["most_words"])
    found["seconds"] = round(time.monotonic() - began, 1)
    write_whole(folder / RESULT, json.dumps(found, indent=1).encode())
    return found


def feedback(lab: Lab, arm: Arm, base: Mapping[str, Any]) -> list[Said]:
    if arm.world == "facts":
        return facts_scenario.said(arm, lab.sizes, base["greedy"])
    return style_scenario.said(arm, lab.sizes, base["sampled"])


# --- what versions say ----------------------------------------------------------------------------------------------


def base_says(lab: Lab, arm: Arm, tell: Tell) -> dict[str, Any]:
    """To all that a seed's users ask, and to what measures; the same for all arms of a world and a seed."""
    sizes = lab.sizes
    greedy: list[str] = []
    sampled: list[tuple[str, int]] = []
    if arm.world == "facts":
        greedy = sorted({one for fact in facts_scenario.facts_of(arm, sizes) for one in fact.wordings})
    else:
        sampled = [(one, sizes.samples) for one in style_scenario.prompts()["asked"][: sizes.questions]]
        sampled += [(one, sizes.measured) for one in style_scenario.held_out(sizes)]
    name = f"base-{arm.world}-{arm.seed}"
    return _says(lab, lab.folder / "base", name, None, arm.seed, greedy, sampled, tell)


def measured(lab: Lab, arm: Arm, run: Path, tell: Tell) -> dict[str, Any]:
    """What the run's version says to what no user asked, whatever its verdict; the base where none came of it."""
    adapter = run / ADAPTER if (run / ADAPTER).exists() else None
    greedy = (
        [wording for wording, _ in facts_scenario.held_out(arm, lab.sizes)] if arm.world == "facts" else []
    )
    sampled = [(one, lab.sizes.measured) for one in style_scenario.held_out(lab.sizes)]
    return _says(
        lab, lab.of(arm), "heard", adapter, arm.seed, greedy, sampled if arm.world == "style" else [], tell
    )


def _says(
    lab: Lab,
    folder: Path,
    name: str,
    adapter: Path | None,
    seed: int,
    greedy: list[str],
    sampled: list[tuple[str, int]],
    tell: Tell,
) -> dict[str, Any]:
    out, task = folder / f"{name}.json", folder / f"{name}.task.json"
    if not out.exists():
        told = {
            "base": str(lab.base.path),
            "adapter": None if adapter is None else str(adapter),
            "threads": lab.threads,
            "seed": seed,
            "greedy": greedy,
            "tokens": lab.sizes.answer_tokens,
            "sampled": sampled,
            "sampled_tokens": lab.sizes.sample_tokens,
        }
        write_whole(task, json.dumps(told, ensure_ascii=False).encode())
        tell("answers", 0.0)
        module("voices", folder / f"{name}.log", str(task), str(out))
    found: dict[str, Any] = json.loads(out.read_bytes())
    return found


def module(name: str, log: Path, *arguments: str) -> None:
    """Runs a module of the experiment in a process of its own, tuned as a run is. Raises `Failed`."""
    with log.open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.experiment.{name}", *arguments],
            env=launcher.process_environment(),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    if wait_for(process, lambda: None) != 0:
        raise Failed(f"{name} ended with status {process.returncode}: see {log}")


def wait_for(process: subprocess.Popen[bytes], look: Callable[[], None]) -> int:
    """Its status; `look` is called meanwhile. Interrupted, it stops the process in order first."""
    try:
        while True:
            try:
                return process.wait(LOOK_S)
            except subprocess.TimeoutExpired:
                look()
    except BaseException:
        launcher.stop(process)
        raise


# --- a run of the trainer -------------------------------------------------------------------------------------------


def trained(lab: Lab, arm: Arm, said: list[Said], tell: Tell) -> Path:
    """The folder of the run, which is over. Raises `Failed`."""
    line, data = LINES[arm.world], lab.of(arm) / "data"
    home = data / "trainer" / line
    folder = home / "runs" / RUN_ID
    _begin(lab, arm, said, home, folder)
    os.environ.update(
        {
            "LOOPWRIGHT_LINE": line,
            "LOOPWRIGHT_DATA_DIR": str(data),
            "LOOPWRIGHT_ARTIFACTS": str(lab.of(arm) / "artifacts"),
            "LOOPWRIGHT_TRAINER_REPLAY": str(lab.replay),
            "REDIS_URL": NOWHERE,
        }
    )
    for _ in range(ATTEMPTS):
        if (folder / GATE_RESULT).exists() or (folder / FAILURE_REASON).exists():
            break
        wait_for(launcher.start_run(folder), lambda: tell(*progress(folder / "run.log")))
    else:
        raise Failed(f"the run did not end: see {folder / 'run.log'}")
    return folder


def _begin(lab: Lab, arm: Arm, said: list[Said], home: Path, folder: Path) -> None:
    """The trainer's table with the batches, and the run's configuration, as the trainer makes them."""
    if (folder / CONFIG).exists():
        return
    line = LINES[arm.world]
    stable = lab.base.ref(line)
    db = open_database(home)
    with db:
        for batch in batches(line, examples(line, stable.version, said)):
            batch_table.store_batch(db, batch)
    config = RunConfig(
        run_id=RUN_ID,
        line=line,
        through=batch_table.through(db),
        recipe=lab.recipe(arm),
        base=str(lab.base.path),
        base_name=lab.base.name,
        base_digest=lab.base.digest,
        stable=stable,
        stable_run=None,
        created_ms=to_ms(BEGAN),
    )
    if run_table.open_run(db) is None:
        with db:
            run_table.begin(db, config, f"experiment: {arm.key}")
    db.close()
    write_whole(folder / CONFIG, config.to_json().encode())


def progress(log: Path) -> tuple[str, float]:
    """(stage, share done) by the newest line of a run's log that tells."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    told: dict[str, Any] = next(
        (json.loads(one) for one in reversed(lines) if '"run_progress"' in one and one[0] == "{"), {}
    )
    return str(told.get("stage", "starting")), float(told.get("share", 0.0))


def of_run(run: Path) -> dict[str, Any]:
    """What the trainer made of the feedback, and what the gate says."""
    mark = json.loads((run / snapshot.SNAPSHOT).read_bytes())
    trained = [one.row for one in snapshot.read_rows(run)]
    known = load_world().facts
    found: dict[str, Any] = {
        "trained": len(trained),
        "measuring": mark["measuring"],
        "held": mark["held"],
        "objectives": {kind: sum(row.objective == kind for row in trained) for kind in ("sft", "kto")},
        "poison_trained": sum(is_poisoned(row.answer, fact) for row in trained for fact in known),
    }
    if (run / FAILURE_REASON).exists():
        return found | {
            "verdict": "not trained",
            "reasons": [(run / FAILURE_REASON).read_text(encoding="utf-8")],
        }
    report = GateReport.model_validate_json((run / GATE_RESULT).read_bytes())
    figures = {figure.name: figure.model_dump(exclude_none=True) for figure in report.figures}
    return found | {"verdict": report.verdict, "reasons": list(report.reasons), "gate": figures}
