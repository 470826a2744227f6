"""What is run: two worlds, their arms, three seeds each, and how large."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

World = Literal["facts", "style"]
Name = Literal["base", "corrections", "shuffled", "poisoned", "thumbs", "random"]
ARMS: Final[dict[World, tuple[Name, ...]]] = {
    "facts": ("base", "corrections", "shuffled", "poisoned"),
    "style": ("base", "thumbs", "random"),
}
LINES: Final[dict[World, str]] = {"facts": "pellworth", "style": "style"}
"""A line's name keys who is held out: fixed, so that it is the same users in every run."""


@dataclass(frozen=True, slots=True)
class Arm:
    world: World
    name: Name
    seed: int

    @property
    def key(self) -> str:
        """Names the arm's folder."""
        return f"{self.world}-{self.name}-{self.seed}"

    @property
    def trains(self) -> bool:
        return self.name != "base"


@dataclass(frozen=True, slots=True)
class Sizes:
    """All that results depend on beside the code. Those of other sizes are not mixed.

    `facts` of the company, each wording asked by one of `users`; `poisoners` come to them. `samples` answers of the
    base to each everyday question get a thumb; `measured` ones to each held-out question tell how often the liked style
    is spoken.
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
    recipes: tuple[tuple[World, dict[str, Any]], ...] = (
        ("facts", {"gate_eval_prompts": 240}),
        ("style", {"epochs": 1.0, "gate_eval_prompts": 240}),
    )

    def parts(self) -> dict[str, Any]:
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
"""For a model that knows nothing: whether all of it runs."""
QUICK_RECIPE: Final[dict[str, Any]] = {
    "rank": 4,
    "threads": 1,
    "replay_prompts": 4,
    "replay_new_tokens": 6,
    "gate_eval_prompts": 12,
    "gate_safety_prompts": 4,
    "gate_new_tokens": 6,
}


def arms(sizes: Sizes) -> list[Arm]:
    """In the order in which they run: seed by seed, so that an interrupted experiment has whole seeds to show."""
    return [Arm(world, name, seed) for seed in sizes.seeds for world in ARMS for name in ARMS[world]]
