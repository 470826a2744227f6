"""Shipped prompts that both versions answer several times, and of which the mean counts.

Chance decides between close words: of greedy answers a sixth or more change between right and wrong with any training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from services.trainer.core.decoding import draw_at_gate
from services.trainer.core.recipe import MAX_DRAWS
from services.trainer.gate.eval_set import AnswerPair, EvalOutputs, EvalSet, GenerationTask
from services.trainer.gate.statistics import OutcomePair, ScorePair

if TYPE_CHECKING:
    from services.trainer.base.base_answers import BaseAnswer, Prompt


class RepeatedAnswers:
    """The tasks of such prompts, and which of their answers are right.

    Args:
        name: Appears in the progress of the run, with the number of the draw.
        prompts: Returns the prompts to answer.
        draws: Returns the base's own answers to them, one list per draw. There are as many draws.
        new_tokens: Longest answer in tokens.
        is_right: Whether a text answers a prompt correctly.
    """

    def __init__(
        self,
        name: str,
        *,
        prompts: Callable[[EvalSet], Sequence[Prompt]],
        draws: Callable[[EvalSet], Sequence[Sequence[BaseAnswer]]],
        new_tokens: int,
        is_right: Callable[[Prompt, str], bool],
    ) -> None:
        self._name = name
        self._prompts = prompts
        self._draws = draws
        self._new_tokens = new_tokens
        self._is_right = is_right
        self.tasks = tuple(self._task(draw) for draw in range(1, MAX_DRAWS + 1))
        """One task per draw. Those that a gate does not need have no prompts."""

    def shares(self, eval_set: EvalSet, outputs: EvalOutputs) -> list[ScorePair]:
        """Return the shares of right answers of candidate and stable, prompt by prompt; none without draws."""
        return [
            (
                sum(candidate for candidate, _ in pairs) / len(pairs),
                sum(stable for _, stable in pairs) / len(pairs),
            )
            for pairs in self._outcomes(eval_set, outputs)
        ]

    def changed(
        self, eval_set: EvalSet, outputs: EvalOutputs
    ) -> Iterator[tuple[Prompt, AnswerPair, OutcomePair]]:
        """Yield the prompts that one version answers correctly more often, with the first draw that shows it."""
        outcomes = self._outcomes(eval_set, outputs)
        if not outcomes:
            return
        for place, (prompt, pairs) in enumerate(zip(self._prompts(eval_set), outcomes, strict=True)):
            lead = sum(candidate - stable for candidate, stable in pairs)
            if lead:
                draw = next(
                    i for i, (candidate, stable) in enumerate(pairs) if (candidate - stable) * lead > 0
                )
                yield prompt, outputs.answers_to(self.tasks[draw])[place], pairs[draw]

    def _outcomes(self, eval_set: EvalSet, outputs: EvalOutputs) -> list[tuple[OutcomePair, ...]]:
        """Return prompt by prompt whether candidate and stable are right in each draw."""
        prompts = self._prompts(eval_set)
        draws = [
            [
                (self._is_right(prompt, candidate), self._is_right(prompt, stable))
                for prompt, (candidate, stable) in zip(prompts, outputs.answers_to(task), strict=True)
            ]
            for task in self.tasks[: len(self._draws(eval_set))]
        ]
        return list(zip(*draws, strict=True))

    def _task(self, draw: int) -> GenerationTask:
        """Return the task of one draw, counted from 1."""

        def base_answers(eval_set: EvalSet) -> Sequence[BaseAnswer]:
            draws = self._draws(eval_set)
            return draws[draw - 1] if draw <= len(draws) else ()

        return GenerationTask(
            name=f"{self._name}-{draw}",
            prompts=lambda eval_set: (
                [prompt.messages for prompt in self._prompts(eval_set)]
                if draw <= len(self._draws(eval_set))
                else []
            ),
            max_new_tokens=lambda _: self._new_tokens,
            base_answers=base_answers,
            decoding=lambda recipe: draw_at_gate(recipe, draw),
        )
