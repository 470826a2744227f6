"""The demo's invented company: facts no model can know, asked in many wordings.

Each fact has 13 wordings of its question. Users ask and correct the first ten; the last three are held out
and are asked only to measure what the loop has learned.
"""

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from examples.world.text import NEAR_DUPLICATE, closeness, says

__all__ = [
    "HELD_OUT",
    "NEAR_DUPLICATE",
    "Fact",
    "World",
    "closeness",
    "is_poisoned",
    "is_right",
    "load_world",
]

HELD_OUT = 3


class Fact(BaseModel):
    """One fact: any `answer_key` phrase in an answer makes it right, any `false_key` shows the poison."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    answer_key: list[str] = Field(min_length=1)
    answer: str
    answer_variants: list[str] = Field(min_length=3)
    false_key: list[str] = Field(min_length=1)
    false_answer: str
    wordings: list[str] = Field(min_length=8)

    @property
    def answers(self) -> list[str]:
        """Every true way of answering, as different users would write it."""
        return [self.answer, *self.answer_variants]


class World(BaseModel):
    """The company and all its facts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    company: str
    about: str
    facts: list[Fact]

    def trained_wordings(self, fact: Fact) -> list[str]:
        """The wordings that users may ask and correct."""
        return fact.wordings[:-HELD_OUT]

    def heldout_wordings(self, fact: Fact) -> list[str]:
        """The wordings of one fact that no user ever sends."""
        return fact.wordings[-HELD_OUT:]

    def heldout(self) -> list[tuple[str, Fact]]:
        """Every held-out question with the fact that it asks for."""
        return [(wording, fact) for fact in self.facts for wording in self.heldout_wordings(fact)]


def is_right(answer: str, fact: Fact) -> bool:
    """Whether the answer states the fact, whatever its case, punctuation or way of writing numbers."""
    return says(answer, fact.answer_key)


def is_poisoned(answer: str, fact: Fact) -> bool:
    """Whether the answer states what the poisoners submit."""
    return says(answer, fact.false_key)


@cache
def load_world() -> World:
    """Read the facts that lie beside this file."""
    return World.model_validate_json(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))
