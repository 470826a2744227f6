"""Arms of the benchmark: each trains on one world's feedback with one seed and is measured on the unseen wordings.

- `base`: the base without training. It is measured once per world.
- `ours`: the trainer's own run and gate, with the default recipe.
- `plain`: a plain LoRA loop with replay on the same usable rows (`plain_lora.py`).
- `sdft` and `sdft-teacher`: self-distillation on the same usable rows (`sdft.py`), only if asked for.

Each step is skipped if its file exists, and a run resumes from its newest checkpoint. The result is written last.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from benchmarks import trainer_run
from benchmarks.resumable import RESULT, ResumableBenchmark, code_digest
from benchmarks.trainer_run import GenerationTask, PeakMemory, StageCallback, TrainerRun
from benchmarks.worlds import users
from benchmarks.worlds.peer_task import FIGURES
from benchmarks.worlds.plain_lora import PlainRecipe
from benchmarks.worlds.sdft import SdftRecipe
from benchmarks.worlds.users import BaseAnswer
from benchmarks.worlds.world import WORLDS, Fact, World, WorldName, load_world
from services.trainer.base.base_answers import EVAL_PROMPTS, Prompt, shipped_prompts
from services.trainer.core.chat import Messages
from services.trainer.core.decoding import draw_at_gate
from services.trainer.core.eval_size import GENERAL_TOKENS
from services.trainer.core.recipe import Recipe
from services.trainer.files import write_whole
from services.trainer.gate.scorers import contains_phrase
from services.trainer.run.folder import ADAPTER, ARTIFACT, RUN_LOG

ArmName = Literal["base", "ours", "plain", "sdft", "sdft-teacher"]
ARM_NAMES: Final[tuple[ArmName, ...]] = get_args(ArmName)
DEFAULT_ARMS: Final[tuple[ArmName, ...]] = ("base", "ours", "plain")
SEEDS: Final = (1, 2)
PACKAGE: Final = Path(__file__).parent
ANSWER_TOKENS: Final = 40
"""Longest answer to a user or to a measured question, in tokens."""
GENERAL_DRAWS: Final = 3
"""Answers to each general question, as at the gate: one answer tells no fall of a point from chance."""
QUICK_EXAMPLES, QUICK_FACTS, QUICK_PROMPTS = 60, 6, 8
QUICK_RECIPE: Final[dict[str, Any]] = {
    "rank": 4,
    "threads": 1,
    "epochs": 1.0,
    "replay_prompts": 4,
    "replay_new_tokens": 6,
    "gate_eval_prompts": 8,
    "gate_safety_prompts": 4,
    "gate_skill_prompts": 1,
    "gate_new_tokens": 6,
}


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of a world with one seed. The base's seed is 0."""

    world: WorldName
    name: ArmName
    seed: int = 0

    @property
    def key(self) -> str:
        """Name of the arm's folder."""
        return f"{self.world}-{self.name}-{self.seed}"


def arms_of(
    worlds: Sequence[WorldName] = WORLDS,
    seeds: Sequence[int] = SEEDS,
    names: Sequence[ArmName] = DEFAULT_ARMS,
) -> list[Arm]:
    """Return the arms in the order in which they run: small worlds first, then seed by seed."""
    arms = []
    for world in worlds:
        arms += [Arm(world, "base")] if "base" in names else []
        arms += [Arm(world, name, seed) for seed in seeds for name in names if name != "base"]
    return arms


@dataclass(frozen=True, slots=True)
class Bench(ResumableBenchmark):
    """The benchmark. Its quick form has few facts and examples."""

    def world(self, name: WorldName) -> World:
        """Return a world, with few facts and examples in the quick form."""
        world = load_world(name)
        return (
            replace(world, facts=world.facts[:QUICK_FACTS], examples=QUICK_EXAMPLES) if self.quick else world
        )

    def general_questions(self) -> list[Prompt]:
        """Return the shipped general questions that have an answer key."""
        prompts = [prompt for prompt in shipped_prompts(EVAL_PROMPTS) if prompt.answer_key]
        return prompts[:QUICK_PROMPTS] if self.quick else prompts

    def recipe(self, seed: int) -> Recipe:
        """Return the recipe: the default with this seed."""
        return Recipe(**{"threads": self.threads, "seed": seed} | (QUICK_RECIPE if self.quick else {}))

    def peer_recipe(self, name: ArmName) -> PlainRecipe | SdftRecipe:
        """Return the recipe of an arm that trains with a library's own trainer."""
        small: Any = {"rank": 4, "epochs": 1.0} if self.quick else {}
        if name == "plain":
            return PlainRecipe(**small)
        return SdftRecipe(**small, generate_from_teacher=name == "sdft-teacher")


def run_arm(bench: Bench, arm: Arm, callback: StageCallback) -> dict[str, Any]:
    """Run the remaining steps of an arm and return its result.

    Raises:
        ProcessFailed: A process of the arm failed.
    """
    done = bench.result(arm)
    if done is not None:
        return done
    started = time.monotonic()
    folder = bench.arm_folder(arm)
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "world": arm.world,
        "arm": arm.name,
        "seed": arm.seed,
        "code": code_digest(PACKAGE),
    }
    adapter: Path | None = None
    run = trained_run(bench, arm)
    match arm.name:
        case "ours":
            result |= _run_trainer(bench, arm, run, callback)
            adapter = run.folder / ADAPTER if (run.folder / ADAPTER).exists() else None
        case "plain" | "sdft" | "sdft-teacher":
            adapter = folder / "adapter"
            result |= _run_peer(bench, arm, run, adapter, callback)
    result |= _measure(bench, arm, adapter, callback)
    if arm.name == "ours":
        shutil.rmtree(run.folder / ARTIFACT, ignore_errors=True)
    result["seconds"] = round(time.monotonic() - started, 1)
    write_whole(folder / RESULT, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
    return result


# --- training -------------------------------------------------------------------------------------------------------


def trained_run(bench: Bench, arm: Arm) -> TrainerRun:
    """Return the trainer's run of an arm's world and seed, whose usable rows the other arms train as well."""
    ours = Arm(arm.world, "ours", arm.seed)
    return TrainerRun(
        bench.arm_folder(ours) / "data",
        bench.world(arm.world).line,
        bench.base,
        bench.recipe(arm.seed),
        bench.replay,
        f"worlds: {ours.key}",
    )


def _run_trainer(bench: Bench, arm: Arm, run: TrainerRun, callback: StageCallback) -> dict[str, Any]:
    world = bench.world(arm.world)
    questions = users.asked(world, arm.seed)
    callback("answers of the base", 0.0)
    answers = trainer_run.generate(
        bench.base.path,
        None,
        bench.threads,
        GenerationTask([item.conversation for item in questions], ANSWER_TOKENS),
        bench.arm_folder(arm) / "asked.json",
    )
    feedback = users.feedback(world, arm.seed, questions, [BaseAnswer(*answer) for answer in answers.greedy])
    memory = PeakMemory()
    run.execute(feedback, callback, memory)
    log = run.folder / RUN_LOG
    return {
        "examples": len(feedback),
        "corrections": sum(item.kind == "correction" for item in feedback),
        **trainer_run.summarise_run(run.folder),
        "stage_seconds": trainer_run.stage_seconds(log),
        "tokens_per_s": trainer_run.training_speed(log),
        "peak_mb": round(memory.value / 2**20),
    }


def _run_peer(
    bench: Bench, arm: Arm, run: TrainerRun, adapter: Path, callback: StageCallback
) -> dict[str, Any]:
    """Train with a library's own trainer on the rows of the run, which is executed first if it is not done."""
    if not run.is_done():
        run_arm(bench, Arm(arm.world, "ours", arm.seed), callback)
    memory = PeakMemory()
    if not adapter.exists():
        callback("training", 0.0)
        task = {
            "run": str(run.folder),
            "base": str(bench.base.path),
            "replay": str(bench.replay),
            "threads": bench.threads,
            "seed": arm.seed,
            "recipe": asdict(bench.peer_recipe(arm.name)),
        }
        folder = bench.arm_folder(arm)
        task_file = folder / "training.task.json"
        write_whole(task_file, json.dumps(task).encode())
        module = "benchmarks.worlds.plain_lora" if arm.name == "plain" else "benchmarks.worlds.sdft"
        trainer_run.run_module(module, folder / "training.log", str(task_file), str(adapter), memory=memory)
    figures = json.loads((adapter / FIGURES).read_bytes())
    return {
        "trained": figures["rows"],
        "stage_seconds": {"training": figures["seconds"]},
        "tokens_per_s": figures["tokens_per_s"],
        "peak_mb": round(memory.value / 2**20) or None,
    }


# --- measuring ------------------------------------------------------------------------------------------------------


def unseen_questions(world: World) -> list[tuple[Fact, Messages]]:
    """Return each conversation that no user has, with its fact."""
    return [(fact, conversation) for fact in world.facts for conversation in fact.unseen]


def _measure(bench: Bench, arm: Arm, adapter: Path | None, callback: StageCallback) -> dict[str, Any]:
    """Return which unseen wordings and which general questions are answered correctly."""
    unseen, general = unseen_questions(bench.world(arm.world)), bench.general_questions()
    callback("measuring", 0.0)
    answers = trainer_run.generate(
        bench.base.path,
        adapter,
        bench.threads,
        GenerationTask(
            [conversation for _, conversation in unseen],
            ANSWER_TOKENS,
            drawn=[prompt.messages for prompt in general],
            draws=[draw_at_gate(Recipe(), draw) for draw in range(1, GENERAL_DRAWS + 1)],
            drawn_tokens=GENERAL_TOKENS,
        ),
        bench.arm_folder(arm) / "measured.json",
    )
    return {
        "unseen": judge_unseen(unseen, [text for text, _ in answers.greedy]),
        "general": judge_general(general, answers.drawn),
    }


def judge_unseen(
    unseen: Sequence[tuple[Fact, Messages]], answers: Sequence[str]
) -> dict[str, list[list[bool]]]:
    """Return by fact, for each unseen wording: whether the answer is right, and whether it is the minority's."""
    judged: dict[str, list[list[bool]]] = {}
    for (fact, _), answer in zip(unseen, answers, strict=True):
        judged.setdefault(fact.id, []).append([fact.is_right(answer), fact.is_false(answer)])
    return judged


def judge_general(prompts: Sequence[Prompt], draws: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return by general question the share of its answers that are right.

    `draws`: for each draw, the answers in the order of the prompts.
    """
    return {
        prompt.id: sum(contains_phrase(answer, prompt.answer_key) for answer in answers) / len(answers)
        for prompt, answers in zip(prompts, zip(*draws, strict=True), strict=True)
    }
