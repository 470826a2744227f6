"""What candidate and stable are evaluated on, and what came out: the input of every metric.

Does not import torch, transformers or scikit-learn: the trainer's service imports the metrics for their labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from services.trainer.core.chat import Messages
from services.trainer.core.decoding import Decoding, at_gate
from services.trainer.core.recipe import Recipe
from services.trainer.gate.golden import GoldenQuestion
from services.trainer.gate.harness import HarnessResults
from services.trainer.gate.preference_pairs import PreferencePair
from services.trainer.gate.skill_sets import SkillSet

if TYPE_CHECKING:
    from services.trainer.base.base_answers import BaseAnswer, Prompt
    from services.trainer.gate.eval_items import EvalItem, LikedItem

AnswerPair = tuple[str, str]
"""(the candidate's answer, the stable version's answer)"""
ScoredText = tuple[Messages, str]
"""(conversation, answer)"""


@dataclass(frozen=True, slots=True)
class EvalSet:
    """Everything that one gate evaluates both versions on.

    Attributes:
        corrections: Corrections of held-out users.
        liked: Answers that held-out users liked.
        given: How many corrections and liked answers they gave, by kind.
        left_out: How many of these are not evaluated, because they are too many.
        pairs: Liked and disliked answers of held-out users.
        general_prompts: Shipped general prompts.
        general_base_answers: The base model's own answers to `general_prompts`, in the same order.
        general_draws: The base model's repeated answers to those that have an answer key: one list per draw.
        harmful_prompts: Shipped requests that should be refused.
        harmful_draws: The base model's repeated answers to them: one list per draw.
        harmless_prompts: Shipped requests that only look harmful.
        harmless_base_answers: The base model's own answers to them, in the same order.
        skills: Shipped questions about general skills, by the name of their set.
        golden: The operator's golden set.
    """

    corrections: Sequence[EvalItem] = ()
    liked: Sequence[LikedItem] = ()
    given: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    pairs: Sequence[PreferencePair] = ()
    general_prompts: Sequence[Prompt] = ()
    general_base_answers: Sequence[BaseAnswer] = ()
    general_draws: Sequence[Sequence[BaseAnswer]] = ()
    harmful_prompts: Sequence[Prompt] = ()
    harmful_draws: Sequence[Sequence[BaseAnswer]] = ()
    harmless_prompts: Sequence[Prompt] = ()
    harmless_base_answers: Sequence[BaseAnswer] = ()
    skills: Mapping[str, SkillSet] = field(default_factory=dict)
    golden: Sequence[GoldenQuestion] = ()


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """Prompts that both versions answer.

    Attributes:
        name: Appears in the progress of the run, such as `gate, candidate: safety`.
        prompts: Returns the conversations to answer.
        max_new_tokens: Returns the longest answer in tokens.
        base_answers: Returns the base's cached answers to these prompts. They are used, cut to `max_new_tokens`, if
            a version is the base itself. Without it the base answers like any other version.
        decoding: Returns how the answers are decoded.
    """

    name: str
    prompts: Callable[[EvalSet], Sequence[Messages]]
    max_new_tokens: Callable[[Recipe], int]
    base_answers: Callable[[EvalSet], Sequence[BaseAnswer]] | None = None
    decoding: Callable[[Recipe], Decoding] = at_gate


@dataclass(frozen=True, slots=True)
class LikelihoodTask:
    """Given answers whose likelihood is computed under both versions.

    Attributes:
        name: Appears in the progress of the run, such as `gate: likelihood of corrections`.
        texts: Returns the answers with their conversations.
    """

    name: str
    texts: Callable[[EvalSet], Sequence[ScoredText]]


@dataclass(frozen=True, slots=True)
class LikelihoodScores:
    """Likelihood of one answer under candidate and stable, in nats per token.

    Attributes:
        candidate_nll: Negative log-likelihood under the candidate.
        stable_nll: Negative log-likelihood under the stable version.
        kl: Kullback-Leibler divergence from stable to candidate, averaged over the answer's tokens.
        continuation: Probability of not ending the turn before the answer's last token: (candidate, stable).
    """

    candidate_nll: float
    stable_nll: float
    kl: float
    continuation: tuple[float, float] = (1.0, 1.0)

    @property
    def gain(self) -> float:
        """Log-likelihood ratio, candidate over stable."""
        return self.stable_nll - self.candidate_nll


@dataclass(frozen=True, slots=True)
class JudgedTies:
    """What a judge model said about items that the rules leave tied (`judge_model.py`).

    Attributes:
        model: Name of the judge model.
        agreed: Corrections that the judge preferred to the originals, as their users did.
        compared: Corrections on which the judge was asked and had a preference.
        outcomes: Identity of an item -> 1 if the candidate's answer is better, -1 if stable's is. Only what counts.
        problem: Why the judge was not asked everything, or does not count; empty if there is no reason.
    """

    model: str
    agreed: int = 0
    compared: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""

    def summary(self) -> dict[str, Any]:
        """Return what the report says about the judge."""
        return {
            "model": self.model,
            "agreed": self.agreed,
            "compared": self.compared,
            "decided": len(self.outcomes),
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class EvalOutputs:
    """Answers and likelihoods of both versions, by task, in the order of the task's prompts or texts.

    `judge`: What a judge model said, if there is one.
    """

    answers: Mapping[GenerationTask, Sequence[AnswerPair]] = field(default_factory=dict)
    likelihoods: Mapping[LikelihoodTask, Sequence[LikelihoodScores]] = field(default_factory=dict)
    harness: HarnessResults = field(default_factory=HarnessResults)
    """Outcomes of the operator's tasks of lm-evaluation-harness."""
    judge: JudgedTies | None = None

    def decided_by_judge(self, identity: str) -> int:
        """Return the judge model's outcome of a tied item, 0 if it has none."""
        return 0 if self.judge is None else self.judge.outcomes.get(identity, 0)

    def answers_to(self, task: GenerationTask) -> Sequence[AnswerPair]:
        """Return both versions' answers to a task, or nothing if it was not run."""
        return self.answers.get(task, ())

    def likelihoods_of(self, task: LikelihoodTask) -> Sequence[LikelihoodScores]:
        """Return the likelihoods of a task, or nothing if it was not run."""
        return self.likelihoods.get(task, ())
