"""The shipped question sets of general skills: questions, rules for right answers, and what the base can do.

A set is a JSONL file in `data/skills/`, one question per line:

    {"id": "languages-de-01", "kind": "de", "prompt": "Was ist die Hauptstadt von Österreich?",
     "rules": [{"rule": "contains", "any": ["Wien"]}], "right": "Das ist Wien.", "wrong": "Das ist Graz."}

- `messages`, for a conversation: the turns before `prompt`, as [role, content] pairs.
- `rules`: an answer is right if all of them hold (`answer_rules.py`).
- `right` and `wrong`: examples of answers that are, and are not. A test checks them.

The questions of a kind are consecutive, so that a part of a set (`spread`) has every kind in proportion.

Does not import torch or transformers: the trainer's service imports the metrics for their labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import poisson_binom

from services.trainer.gate.answer_rules import Rule
from services.trainer.gate.statistics import FAIL_P, PairedChange, judge_change

if TYPE_CHECKING:
    from services.trainer.base.base_answers import BaseAnswer, Prompt

FOLDER: Final = Path(__file__).parents[1] / "data" / "skills"
SKILL_MARGIN: Final = 0.03
"""Falls of a skill up to this share are accepted."""
SKILL_FAIL_P: Final = 0.01
"""A fall beyond the margin with a p-value below this is a loss. Smaller than for one metric, because there are several
skills, and each is compared."""


class SkillQuestion(BaseModel):
    """One line of a set, as described in the module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    kind: str = Field(min_length=1)
    messages: tuple[tuple[str, str], ...] = ()
    prompt: str = Field(min_length=1)
    rules: tuple[Rule, ...] = Field(min_length=1)
    right: str
    wrong: str

    def accepts(self, answer: str) -> bool:
        """Return whether an answer is right."""
        return all(rule.holds(answer) for rule in self.rules)

    def as_prompt(self) -> Prompt:
        """Return the question as a prompt that models answer."""
        from services.trainer.base.base_answers import Prompt  # noqa: PLC0415 - imports transformers

        return Prompt(self.id, self.prompt, turns=self.messages)


@dataclass(frozen=True)
class SkillSet:
    """The questions of one gate from one set.

    Attributes:
        name: Name of the set.
        questions: The questions.
        base_answers: The base model's own answers, in the same order.
    """

    name: str
    questions: Sequence[SkillQuestion] = ()
    base_answers: Sequence[BaseAnswer] = ()

    @cached_property
    def base_right(self) -> list[bool]:
        """Whether each of the base's answers is right."""
        return [
            question.accepts(base.answer)
            for question, base in zip(self.questions, self.base_answers, strict=True)
        ]

    @cached_property
    def chance(self) -> list[float]:
        """Probability that an answer is right by chance: how many of the base's answers to the other questions are."""
        answers = [base.answer for base in self.base_answers]
        return [
            sum(question.accepts(answer) for j, answer in enumerate(answers) if j != i)
            / max(1, len(answers) - 1)
            for i, question in enumerate(self.questions)
        ]

    @cached_property
    def can_show_a_loss(self) -> bool:
        """Whether the base is so good at this that a version could be seen to be worse.

        So it is if the base has more right answers than chance gives it (a Poisson binomial test with `chance`), and if
        losing all of them would fail the gate.
        """
        right = sum(self.base_right)
        if (
            judge_change(PairedChange(len(self.questions), right, 0), SKILL_MARGIN, fail_p=SKILL_FAIL_P)
            != "failed"
        ):
            return False
        return float(poisson_binom.sf(right - 1, self.chance)) < FAIL_P

    @property
    def compared(self) -> Sequence[SkillQuestion]:
        """The questions that both versions answer: none if they could not show a loss."""
        return self.questions if self.can_show_a_loss else ()


def read_skill_set(name: str) -> list[SkillQuestion]:
    """Return all questions of a shipped set."""
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [SkillQuestion.model_validate(json.loads(line)) for line in lines]
