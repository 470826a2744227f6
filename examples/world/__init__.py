"""The demo's invented company: facts that no model can know, each with 13 wordings of its question.

Users ask and correct the first ten wordings. The last three are held out and measure what the loop has learned.
"""

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from examples.world.text import NEAR_DUPLICATE_SIMILARITY, contains_phrase, similarity

__all__ = [
    "HELD_OUT",
    "NEAR_DUPLICATE_SIMILARITY",
    "Fact",
    "World",
    "is_poisoned",
    "is_right",
    "load_world",
    "similarity",
]

HELD_OUT = 3
"""Number of held-out wordings per fact."""


class Fact(BaseModel):
    """One fact. An answer with an `answer_key` phrase is right; one with a `false_key` phrase is poisoned."""

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
        """All phrasings of the right answer."""
        return [self.answer, *self.answer_variants]


class World(BaseModel):
    """The company and all its facts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    company: str
    about: str
    facts: list[Fact]

    def trained_wordings(self, fact: Fact) -> list[str]:
        """Return the wordings that users ask and correct."""
        return fact.wordings[:-HELD_OUT]

    def heldout_wordings(self, fact: Fact) -> list[str]:
        """Return the wordings that no user sends."""
        return fact.wordings[-HELD_OUT:]

    def heldout(self) -> list[tuple[str, Fact]]:
        """Return each held-out question with its fact."""
        return [(wording, fact) for fact in self.facts for wording in self.heldout_wordings(fact)]


def is_right(answer: str, fact: Fact) -> bool:
    """Return whether the answer states the fact, ignoring case, punctuation and the notation of numbers."""
    return contains_phrase(answer, fact.answer_key)


def is_poisoned(answer: str, fact: Fact) -> bool:
    """Return whether the answer states the poisoners' claim."""
    return contains_phrase(answer, fact.false_key)


@cache
def load_world() -> World:
    """Return the company and its facts, from `facts.json`."""
    return World.model_validate_json(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))
