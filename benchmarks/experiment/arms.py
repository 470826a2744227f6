"""What the experiment runs: two scenarios, their arms with three seeds each, and their sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

Scenario = Literal["facts", "style"]
ArmName = Literal["base", "corrections", "shuffled", "poisoned", "thumbs", "random"]
ARMS: Final[dict[Scenario, tuple[ArmName, ...]]] = {
    "facts": ("base", "corrections", "shuffled", "poisoned"),
    "style": ("base", "thumbs", "random"),
}
LINES: Final[dict[Scenario, str]] = {"facts": "pellworth", "style": "style"}
"""Name of the line of a scenario. It keys the hold-out, so it is fixed: every run holds out the same users."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of a scenario with one seed."""

    scenario: Scenario
    name: ArmName
    seed: int

    @property
    def key(self) -> str:
        """Name of the arm's folder."""
        return f"{self.scenario}-{self.name}-{self.seed}"

    @property
    def trains(self) -> bool:
        """Whether the arm trains a version. The base is only measured."""
        return self.name != "base"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything but the code that results depend on. Results of different sizes are kept apart.

    Attributes:
        seeds: Seeds of every arm.
        facts: Facts of the invented company that users ask for.
        users: Number of users. Each wording of a fact is asked by one of them.
        poisoners: Users who insist on false answers, in addition to `users`.
        questions: Everyday questions whose answers get thumbs.
        samples: Answers of the base to each of these questions.
        held_questions: Everyday questions that measure how often the liked style is used.
        measured: Answers to each of these.
        answer_tokens: Longest greedy answer, in tokens.
        sample_tokens: Longest sampled answer, in tokens.
        recipes: Settings of the recipe that differ from the default, by scenario.
    """

    seeds: tuple[int, ...] = (1, 2, 3)
    facts: int = 20
    users: int = 40
    poisoners: int = 4
    questions: int = 60
    samples: int = 5
    held_questions: int = 30
    measured: int = 4
    answer_tokens: int = 40
    sample_tokens: int = 48
    recipes: tuple[tuple[Scenario, dict[str, Any]], ...] = (
        ("facts", {"gate_eval_prompts": 240}),
        ("style", {"epochs": 1.0, "gate_eval_prompts": 240}),
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the sizes by name."""
        return asdict(self)


QUICK: Final = Sizes(
    facts=4,
    users=24,
    poisoners=2,
    questions=20,
    samples=5,
    held_questions=4,
    measured=2,
    answer_tokens=6,
    sample_tokens=12,
    recipes=(
        ("facts", {"epochs": 1.0}),
        ("style", {"epochs": 0.5, "kto_least": 10}),
    ),
)
"""For the tiny random model: shows only that everything runs."""
QUICK_RECIPE: Final[dict[str, Any]] = {
    "rank": 4,
    "threads": 1,
    "replay_prompts": 4,
    "replay_new_tokens": 6,
    "gate_eval_prompts": 12,
    "gate_safety_prompts": 4,
    "gate_skill_prompts": 1,
    "gate_new_tokens": 6,
}


def all_arms(sizes: Sizes) -> list[Arm]:
    """Return the arms in the order in which they run: seed by seed, so an interrupted experiment has complete seeds."""
    return [Arm(scenario, name, seed) for seed in sizes.seeds for scenario in ARMS for name in ARMS[scenario]]
