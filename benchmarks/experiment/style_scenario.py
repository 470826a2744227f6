"""The scenario `style`: a voice assistant speaks the first sentence of an answer, and users press thumbs. Pure."""

from __future__ import annotations

import json
import random
import re
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from benchmarks.experiment.arms import Arm, Sizes
from benchmarks.make_batches import UserFeedback

SampledAnswers = Mapping[str, Sequence[str]]
"""Sampled answers by question, cut at the token limit."""
SENTENCE = re.compile(r".+?[.!?](?=\s|$)", re.DOTALL)


@cache
def prompts() -> dict[str, list[str]]:
    """Return the everyday questions: `asked` by users, and `held_out` only to measure."""
    shipped = json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))
    return {name: list(shipped[name]) for name in ("asked", "held_out")}


def first_sentence(answer: str) -> str:
    """Return what the assistant speaks: the first sentence, or the whole answer if no sentence ends."""
    match = SENTENCE.match(answer)
    return match.group() if match else answer


def max_liked_words(sizes: Sizes, sampled: SampledAnswers) -> int:
    """Return the largest number of words in a liked answer: the median of the base's spoken answers.

    So about half of the answers are liked, with any base.
    """
    spoken = distinct_answers(sizes, sampled)
    return round(statistics.median(len(answer.split()) for _, answer in spoken))


def is_liked(answer: str, max_words: int) -> bool:
    """Return whether an answer is short and direct."""
    return 0 < len(answer.split()) <= max_words


def distinct_answers(sizes: Sizes, sampled: SampledAnswers) -> list[tuple[str, str]]:
    """Return (question, spoken answer) of each distinct answer that users judge."""
    return [
        (question, answer)
        for question in prompts()["asked"][: sizes.questions]
        for answer in dict.fromkeys(map(first_sentence, sampled[question]))
        if answer
    ]


def simulate_feedback(arm: Arm, sizes: Sizes, sampled: SampledAnswers) -> list[UserFeedback]:
    """Return one thumb on each spoken answer of the base. `sampled` are the base's answers.

    The control arm `random` has as many thumbs up, on random answers.
    """
    rng, max_words = random.Random(f"thumbs {arm.seed}"), max_liked_words(sizes, sampled)
    spoken = distinct_answers(sizes, sampled)
    rng.shuffle(spoken)
    liked = [is_liked(answer, max_words) for _, answer in spoken]
    if arm.name == "random":
        rng.shuffle(liked)
    return [
        UserFeedback(
            f"user-{i % sizes.users + 1:02}",
            question,
            answer,
            "thumbs",
            "up" if liked[i] else "down",
            truncated=True,
        )
        for i, (question, answer) in enumerate(spoken)
    ]


def held_out_questions(sizes: Sizes) -> list[str]:
    """Return the questions that measure and that no user asks."""
    return prompts()["held_out"][: sizes.held_questions]


def judge_answers(sizes: Sizes, sampled: SampledAnswers, max_words: int) -> dict[str, list[bool]]:
    """Return by held-out question, for each answer: whether it is in the liked style."""
    return {
        question: [is_liked(first_sentence(answer), max_words) for answer in sampled[question]]
        for question in held_out_questions(sizes)
    }
