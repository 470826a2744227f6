"""Bases, rows and arms of the benchmark, with the time that each arm should take."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

VOCABULARY: Final = 49_152


class Shape(NamedTuple):
    """Dimensions of a base."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int = VOCABULARY


SHAPES: Final = {
    "7b": Shape(4096, 14336, 32, 32, 8),
    "1b7": Shape(2048, 8192, 24, 32, 32),
    "check": Shape(256, 512, 2, 4, 2, 1024),
    "tiny": Shape(64, 96, 2, 4, 2, 512),
}


class Workload(NamedTuple):
    """Rows of a data set, each with as many tokens in its prompt and in each answer."""

    prompt: int
    answer: int
    rows: int
    kinds: tuple[Literal["sft", "kto", "dpo"], ...]
    """Objectives of the rows, in turn."""
    batch: int
    """Rows per step with TRL's tuned settings."""


WORKLOADS: Final = {
    "short": Workload(60, 60, 4000, ("sft",), 64),
    "long": Workload(700, 300, 1000, ("sft",), 8),
    "kto": Workload(60, 60, 2000, ("kto",), 32),
    "dpo": Workload(60, 60, 2000, ("dpo",), 16),
    "mixed": Workload(60, 60, 4000, ("sft", "sft", "kto", "dpo"), 0),
}


class Arm(NamedTuple):
    """A process: an arm on a base, its data sets in order, and the time that it should take."""

    name: str
    base: str
    workloads: tuple[str, ...]
    seconds: float

    @property
    def label(self) -> str:
        """Return how the arm is named on the command line and in results."""
        return f"{self.name}/{self.base}"


ARMS: Final = (
    Arm("check", "check", ("check",), 30),
    Arm("ours", "7b", ("short", "long", "kto", "dpo", "mixed"), 105),
    Arm("trl-tuned", "7b", ("short", "kto", "dpo", "long"), 85),
    Arm("small-train", "7b", ("short",), 70),
    Arm("small-gate", "7b", ("gate",), 40),
    Arm("trl", "7b", ("kto", "dpo", "short"), 60),
    Arm("ours", "1b7", ("short",), 40),
    Arm("trl-tuned", "1b7", ("short",), 40),
)
"""In the order of their importance, with the seconds that each should take.

What does not fit into the time is left out, and reported.
"""


def tiny_arms() -> list[Arm]:
    """Return one arm of each kind, on the tiny base."""
    seen: dict[str, Arm] = {}
    for one in ARMS:
        seen.setdefault(one.name, one._replace(base="check" if one.name == "check" else "tiny"))
    return list(seen.values())
